"""llama.cpp's files of log-probabilities: written, read, and refused when damaged."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.errors import TextError
from gemcut.eval.kld_file import CLAMP, KldFile, encoded, file_bytes, writing
from gemcut.score import log_softmax


def logits(rows, vocabulary, seed=0, spread=3.0):
    return np.random.default_rng(seed).normal(0, spread, (rows, vocabulary)).astype(np.float32)


def write(path, chunks=3, n_ctx=16, vocabulary=101):
    """A file of random logits, and these."""
    tokens = np.random.default_rng(1).integers(0, vocabulary, (chunks, n_ctx), np.int32)
    rows = [logits(n_ctx - 1 - n_ctx // 2, vocabulary, seed) for seed in range(chunks)]
    with writing(path, tokens, vocabulary) as file:
        for each in rows:
            file.add(each)
    return tokens, rows


@pytest.mark.parametrize("vocabulary", [100, 101])
def test_what_was_written_is_read(tmp_path, vocabulary):
    path = tmp_path / "base.kld"
    tokens, rows = write(path, vocabulary=vocabulary)

    found = KldFile.read(path)

    assert (found.tokens == tokens).all() and found.n_vocab == vocabulary
    assert path.stat().st_size == file_bytes(16, vocabulary, 3)
    for number, each in enumerate(rows):
        wanted = np.maximum(log_softmax(each), log_softmax(each).max(axis=1)[:, None] - CLAMP)
        np.testing.assert_allclose(found.log_probabilities(number), wanted, atol=3e-4)
    assert [path] == list(tmp_path.iterdir())


@given(st.integers(1, 300), st.integers(0, 99), st.floats(0, 50))
def test_no_row_is_off_by_more_than_a_step_or_the_clamp(vocabulary, seed, spread):
    row = logits(1, vocabulary, seed, spread)[0]
    code = encoded(row)
    scale, least = code[:4].view("<f4")
    wanted = log_softmax(row)
    wanted = np.maximum(wanted, wanted.max() - CLAMP)

    found = code[4 : 4 + vocabulary] * np.float64(scale) + least

    np.testing.assert_allclose(found, wanted, atol=float(scale) / 2 + 1e-4)


def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path):
    tokens = np.zeros((2, 16), np.int32)
    with pytest.raises(RuntimeError), writing(tmp_path / "base.kld", tokens, 8) as file:
        file.add(logits(7, 8))
        raise RuntimeError

    assert [] == list(tmp_path.iterdir())


def damaged(data: bytes, how: str) -> bytes:
    numbers = np.frombuffer(data[8:20], "<i4").copy()
    if how == "cut short":
        return data[:-2]
    if how == "too long":
        return data + b"\0\0"
    if how == "empty":
        return b""
    if how == "another format":
        return b"GGUF" + data[4:]
    if how == "a token too large":
        return data[:20] + np.int32(1 << 20).tobytes() + data[24:]
    numbers[{"context": 0, "vocabulary": 1, "chunks": 2}[how]] = (
        -(1 << 31) if how != "chunks" else 0
    )
    return data[:8] + numbers.tobytes() + data[20:]


@pytest.mark.parametrize(
    "how",
    [
        "cut short",
        "too long",
        "empty",
        "another format",
        "a token too large",
        "context",
        "vocabulary",
        "chunks",
    ],
)
def test_damaged_files_are_refused(tmp_path, how):
    path = tmp_path / "base.kld"
    write(path)
    path.write_bytes(damaged(path.read_bytes(), how))

    with pytest.raises(TextError, match=r"base\.kld"):
        KldFile.read(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(TextError, match="cannot read it"):
        KldFile.read(tmp_path / "none.kld")
