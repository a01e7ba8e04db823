"""Which tokenizers score a text alike, and how others are told apart."""

import numpy as np
import pytest

from gemcut.errors import EngineError
from gemcut.eval.texts.alike import check_alike
from gemcut.gguf_file import GGUFFile, Value
from gemcut.gguf_layout import header


@pytest.fixture(scope="module")
def tokenizer(bf16):
    """The demo's metadata: of a vocabulary without tensors, that llama.cpp can load, too."""
    with GGUFFile(bf16) as file:
        return dict(file.metadata)


@pytest.fixture
def compared(tmp_path, tokenizer):
    """Compares the demo's tokenizer with a changed one."""

    def compare(changes):
        files = []
        for name, changed in (("a.gguf", {}), ("b.gguf", changes)):
            metadata = {**tokenizer, **{f"tokenizer.ggml.{k}": v for k, v in changed.items()}}
            kept = {key: value for key, value in metadata.items() if value is not None}
            (tmp_path / name).write_bytes(header(kept, []))
            files.append(tmp_path / name)
        return check_alike(files)

    return compare


def changed(tokenizer, key, place, value):
    """One entry of an array in the metadata, changed."""
    old = tokenizer[f"tokenizer.ggml.{key}"]
    data = [*old.data]
    data[place] = value
    return {key: Value(old.kind, data)}


def test_files_of_one_tokenizer_are_alike(compared, bf16):
    assert compared({}) == ()
    assert check_alike([bf16]) == ()


def test_the_first_difference_of_the_tokens_is_named(compared, tokenizer):
    old = tokenizer["tokenizer.ggml.tokens"].data[700]

    with pytest.raises(EngineError) as caught:
        compared(changed(tokenizer, "tokens", 700, "gemcut"))

    wanted = f"b.gguf cannot be compared with a.gguf: token 700 is 'gemcut' instead of {old!r}"
    assert wanted in str(caught.value)


def test_a_longer_vocabulary_is_another(compared, tokenizer):
    tokens = [*tokenizer["tokenizer.ggml.tokens"].data, "<more>"]

    with pytest.raises(EngineError, match=f"token {len(tokens) - 1} is '<more>' instead of miss"):
        compared({"tokens": Value("[str]", tokens)})


def test_other_rules_for_cutting_are_refused(compared, tokenizer):
    with pytest.raises(EngineError, match="its kind of tokenizer is 'llama' instead of"):
        compared({"model": Value("str", "llama")})
    with pytest.raises(EngineError, match="its pre-tokenizer is 'qwen2' instead of"):
        compared({"pre": Value("str", "qwen2")})
    with pytest.raises(EngineError, match="entry 3 of the tokenizer's merges is 'x y' instead of"):
        compared(changed(tokenizer, "merges", 3, "x y"))


def test_another_beginning_of_a_text_is_refused(compared):
    with pytest.raises(EngineError, match="begins a text with the BOS '<pad>' instead of the BOS"):
        compared({"bos_token_id": Value("u32", 0)})


def test_a_flag_that_changes_nothing_is_no_difference(compared, tokenizer):
    """llama.cpp puts a BOS before Gemma's texts whether a file asks for it or not."""
    assert "tokenizer.ggml.add_bos_token" in tokenizer
    assert compared({"add_bos_token": None}) == ()


def test_what_does_not_change_scores_is_told(compared, tokenizer):
    types = np.array(tokenizer["tokenizer.ggml.token_type"].data)
    place = int(np.flatnonzero(types == 1)[5])

    notes = compared(
        {"eos_token_id": Value("u32", 3), **changed(tokenizer, "token_type", place, 4)}
    )

    assert len(notes) == 2 and all(note.startswith("b.gguf: ") for note in notes)
    assert "its EOS is 3 (" in notes[0]
    assert f"the type of token {place}, " in notes[1] and "is 4 instead of 1" in notes[1]


def test_damaged_metadata_is_no_crash(compared):
    with pytest.raises(EngineError, match="token 0 is missing"):
        compared({"tokens": Value("u32", 3)})
    assert len(compared({"eos_token_id": Value("str", "x")})) == 1
