"""What tokenizer files may look like: other spellings mean the same, damaged ones are refused."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.vocabulary import reader
from gemcut.convert.vocabulary.structure import NAMES, TABLE
from gemcut.engine import ModelOptions
from gemcut.errors import CheckpointError, GemcutError, UsageError
from gemcut.gguf_file import Value
from gemcut.llama import Model
from tests import vocabularies
from tests.checkpoints import edit
from tests.test_vocabulary import write
from tests.vocabularies import change_json, read

ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPELLED_OUT = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"


@pytest.fixture
def qwen(tmp_path):
    return vocabularies.checkpoint("qwen2", tmp_path / "model")


@pytest.fixture
def mixtral(tmp_path):
    return vocabularies.checkpoint("llama-spm", tmp_path / "model")


# --- pre-tokenizers ---


def first_split(document):
    return document["pre_tokenizer"]["pretokenizers"][0]


def respell(document, old: str, new: str) -> None:
    pattern = first_split(document)["pattern"]
    pattern["Regex"] = pattern["Regex"].replace(old, new)


SPELLINGS = {
    "endings": lambda d: respell(d, ENDINGS, SPELLED_OUT),
    "endings, short": lambda d: respell(d, ENDINGS, "'(?i:[sdmt]|ll|ve|re)"),
    "line ends": lambda d: respell(d, r"\r\n", "\r\n"),
    "one digit": lambda d: respell(d, r"\p{N}|", r"\p{N}{1}|"),
    "possessive": lambda d: respell(d, r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{N}]++"),
    "matches alone": lambda d: first_split(d).update(behavior="Removed", invert=True),
    "nested": lambda d: d["pre_tokenizer"].update(
        pretokenizers=[copy.deepcopy(d["pre_tokenizer"])]
    ),
    "no normalizer": lambda d: d.update(normalizer=None),
    "an empty normalizer": lambda d: d.update(normalizer={"type": "Sequence", "normalizers": []}),
}


@pytest.mark.parametrize("change", SPELLINGS.values(), ids=SPELLINGS)
def test_other_spellings_of_a_structure_mean_the_same(change, qwen):
    expected = read("qwen2", qwen)

    assert expected == read("qwen2", change_json(qwen, change))


UNKNOWN = {
    "regex": (lambda d: respell(d, r"\p{N}", r"\p{N}{1,2}"), r"\\p\{N\}\{1,2\}"),
    "behaviour": (lambda d: first_split(d).update(behavior="MergedWithNext"), "MergedWithNext"),
    "pattern": (lambda d: first_split(d).update(pattern={"String": " "}), "Regex"),
    "space in front": (
        lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        "'add_prefix_space': True",
    ),
    "no bytes": (lambda d: d["pre_tokenizer"]["pretokenizers"].pop(), "pre_tokenizer"),
    "nothing": (lambda d: d.update(pre_tokenizer=None), "pre_tokenizer None"),
    "normalizer": (lambda d: d.update(normalizer={"type": "Lowercase"}), "normalizer.*Lowercase"),
    "damaged": (lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": 7}), ""),
}


@pytest.mark.parametrize(("change", "words"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_structure_is_refused_unless_it_is_named(change, words, qwen):
    """The message shows what was found and how to go on; the option is taken at its word."""
    change_json(qwen, change)

    with pytest.raises(CheckpointError, match=f"{words}.*--pre-tokenizer NAME.*deepseek-v3"):
        read("qwen2", qwen)
    assert "qwen2" == read("qwen2", qwen, pre="qwen2")["tokenizer.ggml.pre"].data


def test_a_pre_tokenizer_that_llama_cpp_does_not_know_is_refused(qwen):
    with pytest.raises(UsageError, match="--pre-tokenizer qwen7: llama.cpp knows .*qwen2"):
        read("qwen2", qwen, pre="qwen7")


def test_sentencepiece_has_no_pre_tokenizer(mixtral):
    with pytest.raises(UsageError, match="--pre-tokenizer qwen2: .* has none"):
        read("llama-spm", mixtral, pre="qwen2")


def test_llama_cpp_loads_every_name(qwen):
    metadata = read("qwen2", qwen)
    assert {name for names in TABLE.values() for name in names} <= NAMES
    for name in sorted(NAMES):
        named = metadata | {"tokenizer.ggml.pre": Value("str", name)}
        with Model.load(write(qwen / f"{name}.gguf", named), ModelOptions(vocab_only=True)) as m:
            assert m.n_vocab == len(metadata["tokenizer.ggml.tokens"].data)


def test_merges_that_are_ignored_decide_between_names(tmp_path):
    """Of those with the same regex, llama.cpp takes whole words as they are for some alone."""
    folder = vocabularies.checkpoint("glm4", tmp_path / "model")
    for whole, name in ((True, "glm4"), (False, "chatglm-bpe")):
        change_json(folder, lambda d, w=whole: d["model"].update(ignore_merges=w))
        checkpoint = Checkpoint(folder)
        assert name == reader()(checkpoint, 704)["tokenizer.ggml.pre"].data
        assert "glm4" == reader("glm4")(checkpoint, 704)["tokenizer.ggml.pre"].data


# --- tokens and merges ---


def rename(document, old: str, new: str) -> None:
    vocab = document["model"]["vocab"]
    vocab[new] = vocab.pop(old)


def set_added(document, **changes) -> None:
    document["added_tokens"][0].update(changes)


DAMAGED = {
    "two tokens, one id": (lambda d: d["model"]["vocab"].update(qq=5), "'qq' have one id, 5"),
    "an added one, too": (lambda d: set_added(d, id=5), "have one id, 5"),
    "beyond the rows": (lambda d: set_added(d, id=672), "672; the embedding has 672 rows"),
    "negative": (lambda d: set_added(d, id=-1), "the id -1, wanted 0 or more"),
    "no number": (lambda d: set_added(d, id=True), "the id True"),
    "no id": (lambda d: d["added_tokens"][0].pop("id"), "the id None"),
    "two ids": (
        lambda d: d["added_tokens"].append({"id": 671, "content": "<|im_end|>"}),
        "'<|im_end|>' has the ids 642, 671",
    ),
    "unknown in a merge": (lambda d: rename(d, "self", "fles"), "no token 'self'"),
    "half a merge": (lambda d: d["model"]["merges"].append(["a"]), "is not a pair"),
    "three in a merge": (lambda d: d["model"]["merges"].append("a b c"), "is not a pair"),
    "a pad's name": (
        lambda d: set_added(d, content="[PAD671]"),
        "tokens 640 and 671 are both '\\[PAD671\\]'",
    ),
    "endings of words": (
        lambda d: d["model"].update(end_of_word_suffix="</w>"),
        "end_of_word_suffix '</w>'",
    ),
}


@pytest.mark.parametrize(("change", "words"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_vocabulary_is_refused(change, words, qwen):
    edit(qwen / "tokenizer_config.json", lambda d: d.pop("added_tokens_decoder"))
    change_json(qwen, change)

    with pytest.raises(CheckpointError, match=words) as caught:
        read("qwen2", qwen)
    assert str(qwen) in str(caught.value) and "\n" not in str(caught.value)


def test_rows_without_a_token_in_the_middle_are_filled(qwen):
    edit(qwen / "tokenizer_config.json", lambda d: d.pop("added_tokens_decoder"))
    change_json(qwen, lambda d: d["added_tokens"].pop(5))
    metadata = read("qwen2", qwen)

    assert "[PAD645]" == metadata["tokenizer.ggml.tokens"].data[645]
    assert 5 == metadata["tokenizer.ggml.token_type"].data[645]


def test_spaces_in_merges_do_not_end_a_token(qwen):
    """llama.cpp cuts a merge at its space."""

    def change(document):
        document["model"]["vocab"] |= {" ": 666, " a": 667}
        document["model"]["merges"].append([" ", "a"])

    change_json(qwen, change)
    assert "Ġ a" == read("qwen2", qwen)["tokenizer.ggml.merges"].data[-1]


def test_settings_decide_what_is_special(qwen):
    """As in transformers; and what looks like a control token is one."""
    change_json(qwen, lambda d: [t.update(special=False) for t in d["added_tokens"]])
    edit(
        qwen / "tokenizer_config.json", lambda d: d["added_tokens_decoder"]["654"].update(special=1)
    )
    metadata = read("qwen2", qwen)
    kinds = dict(
        zip(
            metadata["tokenizer.ggml.tokens"].data,
            metadata["tokenizer.ggml.token_type"].data,
            strict=True,
        )
    )

    assert [3, 3, 3, 4] == [
        kinds[t] for t in ("<tool_call>", "<|im_end|>", "<|fim_pad|>", "<think>")
    ]


# --- SentencePiece ---


def test_merges_that_no_scores_can_stand_for_are_refused(mixtral):
    change_json(mixtral, lambda d: d["model"]["merges"].pop(0))

    with pytest.raises(CheckpointError, match="no merge of .* llama.cpp would join them"):
        read("llama-spm", mixtral)


def test_a_token_of_megabytes_is_not_cut_everywhere(mixtral):
    """Which would copy it as often as it has letters: terabytes."""
    change_json(mixtral, lambda d: d["model"]["vocab"].update({"ab" * (1 << 20): 3}))

    with pytest.raises(CheckpointError, match="have one id, 3") as caught:
        read("llama-spm", mixtral)
    assert len(str(caught.value)) < 5000


SPACES = {
    "normalizer": lambda d: d["normalizer"]["normalizers"].append({"type": "NFKC"}),
    "words": lambda d: d.update(pre_tokenizer={"type": "Metaspace", "replacement": "▁"}),
    "digits": lambda d: d.update(pre_tokenizer={"type": "Digits", "individual_digits": True}),
}


@pytest.mark.parametrize("change", SPACES.values(), ids=SPACES)
def test_another_treatment_of_text_is_refused(change, mixtral):
    with pytest.raises(CheckpointError, match="does something else to a text"):
        read("llama-spm", change_json(mixtral, change))


def test_missing_bytes_are_refused(mixtral):
    change_json(mixtral, lambda d: rename(d, "<0x41>", "<0x4141>"))

    with pytest.raises(CheckpointError, match="no token <0x41>"):
        read("llama-spm", mixtral)


def as_sentencepiece(folder: Path, **fields) -> Path:
    vocabularies.sentencepiece(folder, **fields)
    (folder / "tokenizer.json").unlink()
    return folder


def test_a_unigram_model_is_refused(mixtral):
    with pytest.raises(CheckpointError, match="SentencePiece model of kind 1, wanted 2, BPE"):
        read("llama-spm", as_sentencepiece(mixtral, model=1))


def test_more_pieces_than_rows_are_refused(mixtral):
    edit(mixtral / "config.json", lambda config: config.update(vocab_size=700))

    with pytest.raises(CheckpointError, match="779 pieces; the embedding has 700 rows"):
        read("llama-spm", as_sentencepiece(mixtral))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentencepiece") / "model"
    return as_sentencepiece(vocabularies.checkpoint("llama-spm", folder))


@given(data=st.data())
@settings(max_examples=200)
def test_a_damaged_sentencepiece_model_is_refused_or_read(sentencepiece, data):
    """Cut anywhere, or with some bytes changed."""
    path = sentencepiece / "tokenizer.model"
    whole = path.read_bytes()
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 5)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read("llama-spm", sentencepiece)
    except CheckpointError as error:
        assert str(sentencepiece) in str(error)
    finally:
        path.write_bytes(whole)


# --- anything else ---

VALUES: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-2, 700) | st.text(max_size=3)
)
VALUES |= st.lists(VALUES, max_size=2) | st.dictionaries(st.text(max_size=3), VALUES, max_size=2)


def places(value, depth: int = 0):
    """Every container in a JSON value, but for the insides of long ones."""
    if isinstance(value, dict | list) and depth < 7:
        yield value
        inner = list(value.values() if isinstance(value, dict) else value)
        for child in inner[:8]:
            yield from places(child, depth + 1)


@pytest.fixture(scope="module", params=["llama4", "llama-spm", "deepseek-v3"])
def mutable(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutated") / "model"
    return request.param, vocabularies.checkpoint(request.param, folder)


@given(data=st.data())
@settings(max_examples=150)
def test_a_mutated_file_is_refused_or_read(mutable, data):
    kind, folder = mutable
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    whole = (folder / name).read_text(encoding="utf-8")
    content = json.loads(whole)
    container = data.draw(st.sampled_from(list(places(content))))
    keys = list(container)[:12] if isinstance(container, dict) else list(range(len(container)))[:12]
    if keys:
        container[data.draw(st.sampled_from(keys))] = data.draw(VALUES)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    try:
        metadata = read(kind, folder)
        size = len(metadata["tokenizer.ggml.tokens"].data)
        assert size == len(metadata["tokenizer.ggml.token_type"].data)
    except GemcutError as error:
        assert isinstance(error, CheckpointError)
    finally:
        (folder / name).write_text(whole, encoding="utf-8")


def test_no_tokenizer_at_all_is_refused(qwen):
    shutil.move(qwen / "tokenizer.json", qwen / "elsewhere.json")

    with pytest.raises(CheckpointError, match="tokenizer.json"):
        read("qwen2", qwen)
