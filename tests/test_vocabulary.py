"""Vocabularies of every kind: llama.cpp splits text as the original does, and its converter agrees.

`fixtures/vocabulary` holds the answers of the `tokenizers` library and of llama.cpp's converter,
made by `bench/tokenizer_record.py`.
"""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.vocabulary import reader
from gemcut.engine import ModelOptions
from gemcut.gguf_file import Value
from gemcut.llama import Model
from tests import checkpoints, vocabularies
from tests.vocabularies import BYTE_LEVEL, READERS, RECORDED, read

ROOT = Path(__file__).parent.parent
BENCH = runpy.run_path(str(ROOT / "bench" / "converter.py"))
TEXTS = json.loads((RECORDED / "texts.json").read_text(encoding="utf-8"))
CONVERTED = json.loads((RECORDED / "metadata.json").read_text(encoding="utf-8"))

# The converter reads one end of text from the files; gemcut has room for what is left of the list.
ONLY_OURS = {("llama4", "tokenizer.ggml.eom_token_id")}


def write(path: Path, metadata: dict[str, Value]) -> Path:
    """A GGUF without tensors, by gguf-py."""
    writer = gguf.GGUFWriter(path, "llama")
    adders: dict[str, Callable[[str, Any], None]]
    adders = {"str": writer.add_string, "bool": writer.add_bool, "u32": writer.add_uint32}
    for key, value in metadata.items():
        adders.get(value.kind, writer.add_array)(key, value.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module", params=READERS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    """A checkpoint with the tokenizer of a kind, as it is in the fixtures."""
    return vocabularies.checkpoint(kind, tmp_path_factory.mktemp("plain") / kind)


@pytest.fixture(scope="module")
def vocabulary(kind, tmp_path_factory):
    """llama.cpp's view of a vocabulary whose tokens reach across words."""
    make = vocabularies.crossing if kind in BYTE_LEVEL else vocabularies.checkpoint
    folder = make(kind, tmp_path_factory.mktemp("crossing") / kind)
    path = write(folder / "vocabulary.gguf", read(kind, folder))
    with Model.load(path, ModelOptions(vocab_only=True)) as model:
        yield model


@pytest.fixture(scope="module")
def plain(kind, folder):
    """llama.cpp's view of the vocabulary in the fixtures."""
    path = write(folder / "vocabulary.gguf", read(kind, folder))
    with Model.load(path, ModelOptions(vocab_only=True)) as model:
        yield model


def test_text_is_split_as_the_original_does(kind, vocabulary):
    """A thousand texts; all but those at llama.cpp's own limits, which `differs` states."""
    recorded = np.load(RECORDED / f"{kind}.npz")
    expected = np.split(recorded["ids"], np.cumsum(recorded["counts"])[:-1])
    pairs = zip(TEXTS, expected, strict=True)
    tested = {text: ids for text, ids in pairs if not vocabularies.differs(kind, text)}
    for text, ids in tested.items():
        found = vocabulary.tokenize(text, add_special=False, parse_special=True)
        assert ids.tolist() == found.tolist(), text
    assert len(tested) > 750


def test_tokens_give_the_text_back(kind, vocabulary):
    """All of it: with a space in front, and spaces for ▁, where those are one."""
    for text in filter(None, TEXTS[::4]):
        tokens = vocabulary.tokenize(text, add_special=False, parse_special=kind != "llama-spm")
        found = b"".join(vocabulary.piece(token, special=True) for token in tokens).decode()
        assert found == (text if kind != "llama-spm" else " " + text.replace("▁", " "))


def test_metadata_is_the_converters(kind, folder):
    ours = {
        f"metadata {key}": BENCH["_value"](value)
        for key, value in read(kind, folder).items()
        if (kind, key) not in ONLY_OURS
    }

    assert CONVERTED[kind] == json.loads(json.dumps(ours))


def test_every_ending_of_the_checkpoint_ends_a_generation(folder, plain):
    listed = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]

    for token in listed if isinstance(listed, list) else [listed]:
        assert plain.is_end(token)


def test_special_tokens_are_one_token_each(folder, plain):
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for token in document["added_tokens"]:
        found = plain.tokenize(token["content"], add_special=False, parse_special=True)
        assert [token["id"]] == found.tolist()


def test_rows_without_a_token_are_never_used(kind, folder):
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    metadata = read(kind, folder)
    tokens, kinds = (metadata[f"tokenizer.ggml.{key}"].data for key in ("tokens", "token_type"))
    unused = [number for number, kind in enumerate(kinds) if kind == 5]

    assert size == len(tokens) == len(kinds) == len(set(tokens))
    assert unused == list(range(size - len(unused), size))
    assert [f"[PAD{number}]" for number in unused] == [tokens[number] for number in unused]


def test_the_chat_template_is_the_files(kind, folder):
    found = read(kind, folder)["tokenizer.chat_template"].data
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if (folder / "chat_template.jinja").exists():
        assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == found
    elif (folder / "chat_template.json").exists():
        assert json.loads((folder / "chat_template.json").read_text())["chat_template"] == found
    else:
        assert settings["chat_template"] == found


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_the_structure_alone_gives_the_pre_tokenizer(kind, tmp_path):
    """Where several do the same, a family's preference decides; llama.cpp treats them alike."""
    folder = Checkpoint(vocabularies.checkpoint(kind, tmp_path / "model"))
    alike = {"olmo": "gpt-2", "llama4": "gpt-4o"}

    found = reader()(folder, folder.config["vocab_size"])["tokenizer.ggml.pre"].data
    assert alike.get(kind, kind) == found


# --- SentencePiece ---


@pytest.fixture
def mixtral(tmp_path):
    return vocabularies.checkpoint("llama-spm", tmp_path / "model")


def test_sentencepiece_and_tokenizer_json_say_the_same(mixtral):
    """All but what only a post-processor can: that nothing is put between two texts."""
    expected = read("llama-spm", mixtral)
    del expected["tokenizer.ggml.add_sep_token"]
    vocabularies.sentencepiece(mixtral)
    (mixtral / "tokenizer.json").unlink()

    assert expected == read("llama-spm", mixtral)


def test_tokenizer_json_is_preferred(mixtral):
    expected = read("llama-spm", mixtral)
    (mixtral / "tokenizer.model").write_bytes(b"damaged")

    assert expected == read("llama-spm", mixtral)


def test_added_tokens_come_on_top_of_sentencepiece(mixtral):
    vocabularies.sentencepiece(mixtral)
    (mixtral / "tokenizer.json").unlink()
    checkpoints.edit(mixtral / "config.json", lambda config: config.update(vocab_size=800))
    (mixtral / "added_tokens.json").write_text(json.dumps({"<late>": 790, "▁x▁": 791}))
    found = read("llama-spm", mixtral)

    assert ["<late>", " x "] == found["tokenizer.ggml.tokens"].data[790:792]
    assert [4, 4, 5] == found["tokenizer.ggml.token_type"].data[790:793]


@pytest.mark.parametrize("prefix", [False, True])
def test_a_space_in_front_of_a_text(prefix, mixtral):
    """Said only where it differs from llama.cpp's default, however the files say it."""
    expected = None if prefix else Value("bool", False)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    scheme = "first" if prefix else "never"
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    before = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    normalizer = {"type": "Sequence", "normalizers": [*before, replace]}
    for change in (
        {"normalizer": normalizer, "pre_tokenizer": None},
        {"normalizer": None, "pre_tokenizer": metaspace},
    ):
        checkpoints.edit(mixtral / "tokenizer.json", lambda document, c=change: document.update(c))
        assert expected == read("llama-spm", mixtral).get("tokenizer.ggml.add_space_prefix")
    vocabularies.sentencepiece(mixtral, prefix=prefix)
    (mixtral / "tokenizer.json").unlink()
    assert expected == read("llama-spm", mixtral).get("tokenizer.ggml.add_space_prefix")
