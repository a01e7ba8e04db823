"""llama.cpp's files of log-probabilities: written, read, and refused when damaged."""

import os
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut.errors import OutputError, TextError
from gemcut.eval.scoring import kld_file as module
from gemcut.eval.scoring.kld_file import (
    CLAMP,
    KldFile,
    KldReference,
    file_bytes,
    saved_tokens,
    writing,
)
from gemcut.eval.scoring.packed import pack, unpack
from gemcut.eval.texts.chunks import Chunk, half_scored, parts
from gemcut.score import log_softmax, score


def logits(rows, vocabulary, seed=0, spread=3.0):
    return np.random.default_rng(seed).normal(0, spread, (rows, vocabulary)).astype(np.float32)


def write(path, chunks=3, n_ctx=16, vocabulary=101, spread=3.0):
    """A file of random logits, and these."""
    tokens = np.random.default_rng(1).integers(0, vocabulary, (chunks, n_ctx), np.int32)
    rows = [logits(n_ctx - 1 - n_ctx // 2, vocabulary, seed, spread) for seed in range(chunks)]
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


def as_llama_cpp(row):
    """One row of logits as tools/perplexity/perplexity.cpp computes it, number by number."""
    largest, f = row.max(), np.float32
    least = max(row.min(), largest - f(CLAMP))
    total = sum(float(np.exp(x - largest)) for x in row)
    scale = (largest - least) / f(65535)
    head = np.array([scale, least - largest - f(np.log(total))], "<f4").view("<u2")
    steps = [round(float(f(1) / scale * (x - least))) if x > least else 0 for x in row]
    return [*head, *steps]


@pytest.mark.parametrize("spread", [0.01, 3, 30])
def test_rows_are_those_of_llama_cpp(spread):
    rows = logits(5, 300, spread=spread)

    ours = pack(rows, CLAMP)

    theirs = np.array([as_llama_cpp(row) for row in rows])
    assert (ours[:, 4:] == theirs[:, 4:]).all() and (ours[:, :2] == theirs[:, :2]).all()
    found, wanted = (
        np.ascontiguousarray(x[:, 2:4]).view("<f4") for x in (ours, theirs.astype("<u2"))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(0, 99), st.floats(0, 50), st.sampled_from([128.0, CLAMP]))
def test_no_row_is_off_by_more_than_a_step_or_the_clamp(vocabulary, seed, spread, clamp):
    rows = logits(3, vocabulary, seed, spread)
    wanted = log_softmax(rows)
    wanted = np.maximum(wanted, wanted.max(axis=1, keepdims=True) - clamp)

    found = unpack(pack(rows, clamp), vocabulary)

    step = np.ptp(wanted, axis=1, keepdims=True) / 65535
    assert (abs(found - wanted) <= step / 2 + 1e-4).all()


def test_neither_threads_nor_a_used_buffer_change_a_row():
    rows = logits(700, 401)

    code = pack(rows, CLAMP, threads=3)

    assert (code == pack(rows, CLAMP)).all()
    buffer = np.full((700, 401), np.nan, np.float32)
    assert unpack(code, 401, buffer, threads=3) is buffer
    assert (buffer == unpack(code, 401)).all()
    assert unpack(code[:5], 401, buffer).shape == (5, 401)


def kld_as_llama_cpp(base, targets, candidate):
    """What llama-perplexity adds up: divergence, both likelihoods, delta p and same top."""
    q = log_softmax(candidate)
    at = np.arange(len(targets)), targets
    kept = base > -CLAMP
    p = np.where(kept, np.exp(base.astype(np.float64)), 0)
    kld = np.where(kept, p * (base - q), 0).sum(axis=1)
    delta = np.exp(q[at]) - np.exp(base[at].astype(np.float64))
    same = base.argmax(axis=1) == candidate.argmax(axis=1)
    return kld, -base[at].astype(np.float64), -q[at], delta, same


@pytest.mark.parametrize("spread", [0.01, 3, 12])
def test_scores_against_a_file_are_those_of_llama_perplexity(tmp_path, spread):
    """Cut off, not normalised, even where that makes a divergence negative."""
    path = tmp_path / "base.kld"
    tokens, rows = write(path, vocabulary=2000, spread=spread)
    reference = KldReference(KldFile.read(path), bos=7, threads=2)
    clamped = 0.0

    for number, chunk in enumerate(reference.chunks):
        candidate = rows[number] + 0.01 * logits(len(rows[number]), 2000, 9)
        base = reference.logits(*parts(chunk))
        wanted = kld_as_llama_cpp(base, chunk.targets, candidate)
        first, other = score(chunk.targets, [candidate], base, 1, reference.cutoff)
        d = other.divergence
        found = d.kld, first.nll, other.nll, d.delta_p
        for a, b in zip(found, wanted[:4], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)
        assert (d.same_top == wanted[4]).all()
        clamped += float((base <= -CLAMP).mean())

    assert (clamped > 0) == (spread > 1)


def test_a_bos_takes_the_place_of_the_first_token(tmp_path):
    tokens, rows = write(tmp_path / "base.kld")
    file = KldFile.read(tmp_path / "base.kld")

    chunks = KldReference(file, bos=7).chunks

    assert [chunk.tokens[0] for chunk in chunks] == [7, 7, 7]
    assert all(
        (chunk.tokens[1:] == row[1:]).all() for chunk, row in zip(chunks, tokens, strict=True)
    )
    assert [chunk.n_scored for chunk in chunks] == [7, 7, 7]
    assert (KldReference(file, bos=None).chunks[0].tokens == tokens[0]).all()
    assert (saved_tokens(chunks)[:, 1:] == tokens[:, 1:]).all()


def test_another_process_gets_the_name_of_the_file_and_not_its_rows(tmp_path):
    write(tmp_path / "base.kld", vocabulary=5000)
    reference = KldReference(KldFile.read(tmp_path / "base.kld"), bos=7)
    wanted = reference.logits(*parts(reference.chunks[1])).copy()

    sent = pickle.dumps(reference)
    other = pickle.loads(sent)

    assert len(sent) < 1000
    assert (other.logits(*parts(reference.chunks[1])) == wanted).all()


def test_only_chunks_whose_second_half_is_scored_can_be_saved():
    rows = np.zeros((2, 16), np.int32)
    odd = Chunk(rows[0], np.ones(16, np.bool_))
    for chunks in ([*half_scored(rows), odd], [*half_scored(rows), *half_scored(rows[:, :8])], []):
        with pytest.raises(OutputError, match="second half"):
            saved_tokens(chunks)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    tokens, path = np.zeros((2, 16), np.int32), tmp_path / "base.kld"
    with pytest.raises(OutputError, match="2 chunks more"), writing(path, tokens, 8) as file:
        file.add(logits(7, 9))
    with pytest.raises(OutputError, match="1 chunks are missing"), writing(path, tokens, 8) as file:
        file.add(logits(7, 8))
    with pytest.raises(OutputError, match="cannot be written"), writing(path / "x", tokens, 8):
        pass
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(module, "disk_usage", lambda folder: usage)
    with pytest.raises(OutputError, match=r"484 B, 100 B are free"), writing(path, tokens, 8):
        pass

    assert [] == list(tmp_path.iterdir())


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
    if how in ("no number", "a step too large"):
        step = np.float32("nan" if how == "no number" else 1e35)
        return data[:-212] + step.tobytes() + data[-208:]
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


@pytest.mark.parametrize("how", ["no number", "a step too large"])
def test_a_row_that_no_logits_make_is_refused(tmp_path, how):
    path = tmp_path / "base.kld"
    write(path)
    path.write_bytes(damaged(path.read_bytes(), how))
    reference = KldReference(KldFile.read(path), None)

    assert np.isfinite(reference.logits(*parts(reference.chunks[1]))).all()
    with pytest.raises(TextError, match="chunk 3 is damaged"):
        reference.logits(*parts(reference.chunks[2]))


@pytest.mark.parametrize("how", ["written to", "replaced", "removed"])
def test_a_file_that_changes_is_refused(tmp_path, how):
    """While it is read, and by a process that opens it anew: its rows would be another text's."""
    path, other = tmp_path / "base.kld", tmp_path / "other.kld"
    write(path)
    write(other)
    reference = KldReference(KldFile.read(path), None)
    assert np.isfinite(reference.logits(*parts(reference.chunks[0]))).all()
    if how == "written to":
        os.utime(path, ns=(1, 1))
    elif how == "replaced":
        other.replace(path)
    else:
        path.unlink()

    with pytest.raises(TextError, match="was changed while it was scored"):
        reference.logits(*parts(reference.chunks[0]))
    with pytest.raises(TextError, match="was changed while it was scored|cannot read it"):
        pickle.loads(pickle.dumps(reference))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(TextError, match="cannot read it"):
        KldFile.read(tmp_path / "none.kld")
