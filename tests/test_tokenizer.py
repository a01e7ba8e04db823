"""Gemma's converted tokenizer splits text as textbook BPE does, and a foreign one is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut import api
from gemcut.engine import ModelOptions
from gemcut.errors import CheckpointError
from gemcut.gguf_file import GGUFFile, Value
from gemcut.llama import Model
from tests import checkpoints

# Gemma's control tokens that are written out as text.
VISIBLE = {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'}
VISIBLE |= {"<|tool_response>", "<tool_response|>"}


@pytest.fixture(scope="module")
def document(checkpoint):
    return json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def vocabulary(bf16):
    """llama.cpp's view of the converted tokenizer."""
    with Model.load(bf16, ModelOptions(vocab_only=True)) as model:
        yield model


def split(document, text: str) -> list[int]:
    """Textbook BPE: merge the pair that was learned first, until none is left."""
    ids = document["model"]["vocab"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(document["model"]["merges"])}
    found: list[int] = []
    for piece in re.findall(r"[^\n]+|\n+", text.replace(" ", "▁")):
        parts = list(piece)
        while True:
            pairs = enumerate(zip(parts, parts[1:], strict=False))
            known = [(ranks[pair], first) for first, pair in pairs if pair in ranks]
            if not known:
                break
            _, first = min(known)
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        for part in parts:
            bytewise = [f"<0x{byte:02X}>" for byte in part.encode()]
            found += [ids[token] for token in ([part] if part in ids else bytewise)]
    return found


PARTS = st.sampled_from(
    ["def ", "self", "    ", "\n", "\n\n", "return", " = ", "é", "€", "😀", "\t"]
)
TEXTS = st.lists(PARTS | st.text(max_size=6), max_size=12).map("".join)


@given(text=TEXTS.filter(lambda text: "\r" not in text))
def test_text_is_split_as_bpe_says(vocabulary, document, text):
    tokens = vocabulary.tokenize(text, add_special=False)

    assert split(document, text) == tokens.tolist()


@given(text=TEXTS)
def test_tokens_give_the_text_back(vocabulary, text):
    tokens = vocabulary.tokenize(text, add_special=False)

    assert text.replace("▁", " ") == b"".join(map(vocabulary.piece, tokens)).decode()


def test_every_special_token_is_one_token(vocabulary, document):
    for token in document["added_tokens"]:
        tokens = vocabulary.tokenize(token["content"], add_special=False, parse_special=True)
        assert [token["id"]] == tokens.tolist()


def test_kinds_of_tokens(bf16, document):
    """Control tokens but for the visible ones, bytes, and text."""
    with GGUFFile(bf16) as file:
        tokens, numbers = (file.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    kinds = dict(zip(tokens, numbers, strict=True))
    special = {token["content"] for token in document["added_tokens"]}

    assert VISIBLE == {token for token, kind in kinds.items() if kind == 4}
    assert special - VISIBLE == {token for token, kind in kinds.items() if kind == 3}
    assert {f"<0x{n:02X}>" for n in range(256)} == {t for t, kind in kinds.items() if kind == 6}
    assert {1, 3, 4, 6} == set(kinds.values())


def test_a_text_begins_with_bos(vocabulary):
    assert 2 == vocabulary.bos == vocabulary.tokenize("x")[0]
    assert (1, True) == (vocabulary.eos, vocabulary.add_bos)


def test_the_file_holds_what_the_tokenizer_holds(bf16, document, checkpoint):
    with GGUFFile(bf16) as file:
        assert sorted(document["model"]["vocab"], key=document["model"]["vocab"].get) == file.get(
            "tokenizer.ggml.tokens"
        )
        assert list(map(" ".join, document["model"]["merges"])) == file.get("tokenizer.ggml.merges")
        template = (checkpoint / "chat_template.jinja").read_text()
        assert template == file.get("tokenizer.chat_template")


def edited(checkpoint: Path, folder: Path, name: str, change) -> Path:
    """A small checkpoint with one of its JSON files changed."""
    checkpoints.build(folder, checkpoint)
    checkpoints.edit(folder / name, change)
    return folder


def vocabulary_metadata(folder: Path):
    metadata = api.open_source(folder).metadata
    found = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    return {key: Value(value.kind, value.data) for key, value in found.items()}


def join_merges(document):
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]


def dictionaries(settings):
    for key in ("bos_token", "eos_token"):
        settings[key] = {"content": settings[key], "special": True}
    settings["extra_special_tokens"] = {"video_token": "<|video|>"}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", join_merges),
        ("tokenizer_config.json", dictionaries),
        ("tokenizer_config.json", lambda settings: settings.update(added_tokens_decoder={})),
    ],
    ids=["merges as text", "tokens as objects", "decoder"],
)
def test_other_spellings_of_a_tokenizer_mean_the_same(name, change, checkpoint, tmp_path):
    changed = edited(checkpoint, tmp_path / "changed", name, change)
    same = checkpoints.build(tmp_path / "same", checkpoint)

    assert vocabulary_metadata(same) == vocabulary_metadata(changed)


def test_a_template_in_the_settings_counts(checkpoint, tmp_path):
    """Where there is no file of its own."""
    folder = edited(
        checkpoint,
        tmp_path / "model",
        "tokenizer_config.json",
        lambda settings: settings.update(chat_template="{{ messages }}"),
    )
    (folder / "chat_template.jinja").unlink()

    assert "{{ messages }}" == vocabulary_metadata(folder)["tokenizer.chat_template"].data


REFUSED = {
    "unigram": (lambda d: d["model"].update(type="Unigram"), "a Unigram tokenizer"),
    "wordpiece": (lambda d: d["model"].update(type="WordPiece"), "a WordPiece tokenizer"),
    "no bytes": (lambda d: d["model"].update(byte_fallback=False), "byte_fallback False; wanted"),
    "no model": (lambda d: d.pop("model"), "no model with a vocab"),
    "unigram's vocabulary": (
        lambda d: d["model"].update(vocab=[["a", 0.0]]),
        "no model with a vocab",
    ),
    "a token is lost": (lambda d: d["model"]["vocab"].pop("self"), "no token 'self'"),
    "too many": (lambda d: d["model"]["vocab"].update(x1=2048), "'x1' with id 2048; .* has 2048"),
    "numbers are text": (lambda d: d["model"]["vocab"].update(x1="2048"), "'x1' has the id '2048'"),
    "added too many": (
        lambda d: d["added_tokens"].append({"id": 2048, "content": "<x>"}),
        "2049 tokens, '<x>' with id 2048; the embedding has 2048 rows",
    ),
    "added is odd": (lambda d: d.update(added_tokens=[7]), "added token 7"),
    "no merges": (lambda d: d["model"].pop("merges"), "no merges"),
    "merges are odd": (lambda d: d["model"].update(merges=[7]), "the merge 7 is not a pair"),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_a_foreign_tokenizer_is_refused(change, words, checkpoint, tmp_path):
    """In one line, and with the place."""
    folder = edited(checkpoint, tmp_path / "model", "tokenizer.json", change)

    with pytest.raises(CheckpointError, match=words) as caught:
        vocabulary_metadata(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_in_another_form_is_refused(checkpoint, tmp_path):
    """As SentencePiece's own file, which older models have."""
    folder = checkpoints.build(tmp_path / "model", checkpoint)
    shutil.move(folder / "tokenizer.json", folder / "tokenizer.model")

    with pytest.raises(CheckpointError, match="tokenizer.json: "):
        api.open_source(folder)
