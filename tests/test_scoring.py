"""Columns scored on chunks: together, one after the other, from the cache; and where one fails."""

import os
import shutil
from bisect import bisect_left
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from gemcut.errors import EngineError, OutOfMemory
from gemcut.eval.files import select
from gemcut.eval.scoring import scorer
from gemcut.eval.scoring.cache import Cache
from gemcut.eval.scoring.column import FLOOR, Column
from gemcut.eval.scoring.fitting import Fitting, placed
from gemcut.eval.scoring.kld_file import KldFile, KldReference, writing
from gemcut.eval.scoring.scorer import Scorer
from gemcut.eval.scoring.scoring import score_columns as score_with_all
from gemcut.eval.texts.chunks import Chunk
from gemcut.llama import Model
from gemcut.score import Scores
from tests import scored

score_columns = partial(score_with_all, threads=1)
N_CHUNKS = 3
ROUNDING = 1e-6  # float32 sums in another order, and scores kept as float32


@pytest.fixture(scope="module")
def files(f32, bf16, q4_k_m):
    return scored.columns(f32, bf16, q4_k_m)


@pytest.fixture(scope="module")
def chunks(f32):
    return scored.some_chunks(f32, N_CHUNKS)


@pytest.fixture(scope="module")
def together(files, chunks):
    return score_columns(files, chunks)


@pytest.fixture
def loads(monkeypatch):
    """The names of the files that are loaded from now on."""
    names, load = [], Model.load

    def noted(path, *options):
        names.append(path.name)
        return load(path, *options)

    monkeypatch.setattr(Model, "load", noted)
    return names


def reads(steps):
    """How many chunks were read in all: what progress was told last."""
    return steps[-1] if steps else (0, 0)


# --- numbers -------------------------------------------------------------------------------------


def test_scores_are_those_of_whole_arrays_of_logits(together, files, chunks):
    reference, _, candidate = files
    wanted = scored.expected(reference.file.path, candidate.file.path, chunks)

    assert list(together.scores) == files and not together.failures
    assert together.scores[reference].divergence is None
    scored.assert_same(together.scores[candidate], Scores.join(wanted), ROUNDING)
    assert all(together.prefill[column] > 0 for column in files)


def test_columns_that_do_not_fit_together_are_scored_one_by_one(together, files, chunks, loads):
    told = []

    apart = score_columns(files, chunks, memory=1, tell=told.append)

    assert loads == [column.file.name for column in files]
    for column in files[1:]:
        scored.assert_same(apart.scores[column], together.scores[column], ROUNDING)
    assert apart.notes == tuple(told) and "2 of 3 columns do not fit" in told[0]
    assert files[0] not in apart.prefill and apart.prefill[files[1]] > 0


def test_without_a_reference_there_is_no_divergence(together, files, chunks):
    alone = scored.columns(*[column.file.path for column in files], reference=False)

    found = score_columns(alone, chunks, memory=1)

    for ours, theirs in zip(alone, files, strict=True):
        assert found.scores[ours].divergence is None
        np.testing.assert_allclose(
            found.scores[ours].nll, together.scores[theirs].nll, atol=ROUNDING
        )


def test_columns_of_one_file_share_it(files, chunks, loads):
    reference = files[0]
    others = [reference.with_cache("q8_0", "q8_0"), Column(reference.file, FLOOR, n_ubatch=16)]

    found = score_columns([reference, *others], chunks[:1])

    assert loads == [reference.file.name]
    cache, floor = (found.scores[column].divergence.kld.mean() for column in others)
    assert 0 <= floor < cache


def test_a_column_can_be_scored_on_some_of_the_chunks(together, files, chunks):
    reference, other, _ = files

    found = score_columns([reference, other], chunks, subset={other: (2, 0)})

    assert len(found.scores[reference].nll) == N_CHUNKS * scored.N_SCORED
    kept = together.scores[other].divergence.kld.reshape(N_CHUNKS, -1)[[0, 2]]
    np.testing.assert_allclose(found.scores[other].divergence.kld, kept.ravel(), atol=ROUNDING)


def test_equal_chunks_are_read_once_and_chunks_may_differ_in_length(files, chunks):
    long = chunks[0]
    outputs = np.zeros(20, bool)
    outputs[[3, 10]] = True
    short, steps = Chunk(long.tokens[:20], outputs, 1), []

    found = score_columns(
        files[:2], [long, short, long], progress=lambda done, total: steps.append((done, total))
    )

    assert reads(steps) == (4, 4)
    nll = found.scores[files[1]].nll
    assert len(nll) == 2 * scored.N_SCORED + 2
    assert (nll[: scored.N_SCORED] == nll[-scored.N_SCORED :]).all()


@pytest.mark.parametrize("way", ["together", "stored", "base"])
def test_long_chunks_are_read_in_parts_with_few_logits_at_once(files, tmp_path, way, monkeypatch):
    """Numbers are those of the whole chunk, whatever the reference's logits come from."""
    reference, other, _ = files
    chunks = scored.some_chunks(reference.file.path, 2, 1300)
    wanted = Scores.join(scored.expected(reference.file.path, other.file.path, chunks))
    rooms, init = [], Scorer.__init__

    def noted(self, column, model, options):
        rooms.append(options.n_outputs)
        init(self, column, model, options)

    monkeypatch.setattr(Scorer, "__init__", noted)
    base = None
    if way == "base":
        with writing(tmp_path / "b", np.stack([c.tokens for c in chunks]), 2048) as file:
            for rows in scored.logits(reference.file.path, chunks):
                file.add(rows)
        base = KldReference(KldFile.read(tmp_path / "b"), None)
    columns = [Column(other.file)] if base else [reference, other]

    found = score_columns(
        columns, base.chunks if base else chunks, base=base, memory=1 if way == "stored" else None
    )

    kld = found.scores[columns[-1]].divergence.kld
    assert kld.shape == (2 * 649,)
    np.testing.assert_allclose(kld, wanted.divergence.kld, atol=1e-4 if base else ROUNDING)
    assert max(rooms) == 374  # of the 649 scored, those of the second 512 tokens


def test_a_file_of_log_probabilities_stands_in_for_a_reference(files, chunks, tmp_path):
    """Of q, 16 bits each: so the numbers are near to those of the logits."""
    path, (reference, other, _) = tmp_path / "base.kld", files
    rows = scored.logits(reference.file.path, chunks)
    with writing(path, np.stack([chunk.tokens for chunk in chunks]), rows[0].shape[1]) as file:
        for each in rows:
            file.add(each)
    base = KldReference(KldFile.read(path), None)
    plain = Column(other.file)

    for isolated in (False, True):
        found = score_columns([plain], base.chunks, base=base, isolated=isolated)

        wanted = Scores.join(scored.expected(reference.file.path, other.file.path, chunks))
        np.testing.assert_allclose(
            found.scores[plain].divergence.kld, wanted.divergence.kld, atol=1e-4
        )
        assert len(found.base.nll) == len(wanted.nll) and found.base.divergence is None


# --- the cache -----------------------------------------------------------------------------------


def test_what_was_scored_is_not_scored_again(files, chunks, tmp_path, loads):
    with Cache(tmp_path / "scores") as cache:
        first = score_columns(files[:2], chunks[:2], cache=cache)
    del loads[:]
    with Cache(tmp_path / "scores") as cache:
        again = score_columns(files[:2], chunks[:2], cache=cache)

    assert not loads and not again.prefill
    assert (again.scores[files[0]].nll == first.scores[files[0]].nll).all()
    scored.assert_same(again.scores[files[1]], first.scores[files[1]])


def test_a_new_file_and_new_text_cost_what_is_new(files, chunks, tmp_path, loads):
    """The reference is read again only where another is compared with it."""
    reference, one, other = files
    steps = []

    def run(columns, chunks):
        del loads[:], steps[:]
        score_columns(
            columns, chunks, cache=cache, progress=lambda done, total: steps.append((done, total))
        )
        return [*loads], reads(steps)

    names = [column.file.name for column in files]
    with Cache(tmp_path / "scores") as cache:
        assert run([reference, one], chunks[:2]) == (names[:2], (4, 4))
        assert run(files, chunks[:2]) == ([names[0], names[2]], (4, 4))
        assert run(files, chunks) == (names, (3, 3))
        assert run([reference], chunks) == ([], (0, 0))
        assert run([reference, other], [chunks[2], chunks[0]]) == ([], (0, 0))


def test_an_interrupted_run_goes_on_where_it_was(files, chunks, tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(done, total):
        if done == 4:
            raise Interrupted

    steps = []
    with Cache(tmp_path / "scores") as cache:
        with pytest.raises(Interrupted):
            score_columns(files[:2], chunks, cache=cache, progress=interrupt)
        score_columns(
            files[:2], chunks, cache=cache, progress=lambda done, total: steps.append(total)
        )

    assert steps[-1] == 2 * N_CHUNKS - 2


# --- failures ------------------------------------------------------------------------------------


def test_a_damaged_file_costs_its_own_column_only(together, files, chunks, tmp_path):
    reference, other, _ = files
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(reference.file.path.read_bytes()[:-100_000])
    column = Column(replace(reference.file, path=damaged, fingerprint="f"))

    found = score_columns([reference, column, other], chunks)

    assert list(found.failures) == [column]
    assert "damaged.gguf: truncated" in found.failures[column]
    scored.assert_same(found.scores[other], together.scores[other])
    with pytest.raises(EngineError, match="damaged.gguf: truncated"):
        score_columns([Column(column.file, reference.role), other], chunks)


@pytest.fixture
def copied(files, tmp_path):
    """A column of a copy of the Q4_K_M that may be changed, and how: written to, or replaced."""
    path = tmp_path / "copy.gguf"
    shutil.copy(files[2].file.path, path)

    def change():
        os.utime(path, ns=(0, 0))

    return Column(*select([path], None)), change


def test_a_file_that_is_written_to_while_it_is_scored_keeps_nothing_of_it(
    together, files, chunks, copied, tmp_path
):
    """What was scored before it changed stays; restored, it is scored for the rest."""
    column, change = copied
    seen, before = [], column.file.path.stat().st_mtime_ns

    def progress(done, total):
        seen.append(done)
        if len(seen) == 4:  # both have read two chunks
            change()

    with Cache(tmp_path / "scores") as cache:
        found = score_columns([files[0], column], chunks, cache=cache, progress=progress)
        os.utime(column.file.path, ns=(before, before))
        again = []
        whole = score_columns(
            [files[0], column], chunks, cache=cache, progress=lambda done, _: again.append(done)
        )

    assert "was changed while it was scored" in found.failures[column]
    assert 4 == len(again)  # two chunks, each read by both
    scored.assert_same(whole.scores[column], together.scores[files[2]], ROUNDING)


def test_a_file_that_became_another_one_is_not_scored_as_the_first(files, chunks, copied):
    column, _ = copied
    column.file.path.write_bytes(files[1].file.path.read_bytes())

    found = score_columns([files[0], column], chunks)

    assert "copy.gguf: was changed while it was scored" in found.failures[column]
    with pytest.raises(EngineError, match="copy.gguf: was changed while it was scored"):
        score_columns([Column(column.file, files[0].role), files[1]], chunks)


@pytest.fixture
def faulty(monkeypatch):
    """Makes a column's logits of its second chunk NaN."""

    def make(column):
        logits, count = Scorer.logits, []

        def nan(self, chunk):
            found = logits(self, chunk)
            if self.column == column:
                count.append(chunk)
                found[: 3 if len(count) == 2 else 0, 5] = np.nan
            return found

        monkeypatch.setattr(Scorer, "logits", nan)

    return make


def test_logits_that_are_not_finite_name_the_chunk(files, chunks, faulty):
    faulty(files[1])

    found = score_columns(files, chunks)

    assert list(found.failures) == [files[1]] and list(found.scores) == [files[0], files[2]]
    assert "chunk 2 of 3: 3 of 31 scored tokens" in found.failures[files[1]]


def test_the_only_file_of_all_may_fail_too(files, chunks, monkeypatch):
    def refuse(self, part):
        raise EngineError("llama.cpp did not decode")

    monkeypatch.setattr(Scorer, "logits", refuse)

    found = score_columns([Column(files[1].file)], chunks)

    assert list(found.failures.values()) == ["llama.cpp did not decode"] and not found.scores


def test_a_file_that_knows_nothing_is_damaged(files, chunks, monkeypatch):
    """NaN among the weights may come out as zeros: then every token is equally likely."""
    logits = Scorer.logits
    monkeypatch.setattr(
        Scorer, "logits", lambda self, part: logits(self, part) * (self.column != files[1])
    )

    found = score_columns(files, chunks)

    assert "all 31 scored tokens are equally likely" in found.failures[files[1]]


def test_a_reference_that_is_not_finite_ends_it(files, chunks, faulty):
    faulty(files[0])

    with pytest.raises(EngineError, match=f"{files[0].name}: chunk 2 of 3: 3 of 31"):
        score_columns(files, chunks)


def test_a_column_without_memory_beside_the_others_waits(together, files, chunks, monkeypatch):
    attempts = []

    class Tight(Scorer):
        def __init__(self, column, model, options):
            attempts.append(column)
            if column == files[1] and attempts.count(column) == 1:
                raise OutOfMemory("no memory")
            super().__init__(column, model, options)

    monkeypatch.setattr(scorer, "Scorer", Tight)

    found = score_columns(files, chunks)

    assert attempts == [*files, files[1]] and not found.failures
    scored.assert_same(found.scores[files[1]], together.scores[files[1]], ROUNDING)


def test_another_vocabulary_is_refused(files, chunks, monkeypatch):
    sizes = {column: 2048 + number for number, column in enumerate(files)}
    monkeypatch.setattr(Scorer, "n_vocab", property(lambda self: sizes[self.column]))

    found = score_columns(files[:2], chunks[:1])

    assert "2049 tokens in its vocabulary, 2048 in that" in found.failures[files[1]]


# --- what fits -----------------------------------------------------------------------------------


def least(columns, stored=False):
    """The fewest bytes of memory in which columns fit together."""

    def fit(memory):
        return Fitting(512, 255, {}, 1, memory).together(columns, stored) == len(columns)

    return bisect_left(range(1 << 28), True, key=fit)


def test_columns_fit_by_the_bytes_of_files_contexts_and_logits(files):
    """A file counts once, each of its contexts for itself, and a store's logits as one more."""
    reference, other, _ = files
    pair, logits = [reference, reference.with_cache("q8_0", "q8_0")], 4 * 255 * 2048

    two, one = least([reference, other]), least(pair)

    sizes = [column.file.size for column in files]
    assert sizes[0] + 2 * logits < one < two - 0.9 * sizes[1]
    assert least(pair, stored=True) == one + logits
    assert Fitting(512, 255, {}, 1, 1).together(pair, False) == 1
    assert placed(files).keys() == {column.file.path for column in files}
