"""Comparing files on text, with the demo's model and its quantised copies."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from gemcut.api import comparing, evaluate
from gemcut.demo.text import held_out_text
from gemcut.engine import ContextOptions
from gemcut.errors import EngineError, GGUFError, TextError, UsageError
from gemcut.eval.answered import answers
from gemcut.eval.compare import compare, compare_selected, compare_with_base
from gemcut.eval.dissect import dissect
from gemcut.eval.files import fingerprint, parts, select
from gemcut.eval.scope import Means, Scope
from gemcut.eval.scoring.column import CANDIDATE, FLOOR, REFERENCE, Column
from gemcut.eval.scoring.saving import save_kld
from gemcut.eval.texts import own
from gemcut.eval.texts.chunks import Chunk, cut, scored
from gemcut.eval.texts.text import Text
from gemcut.llama import Context, Model
from gemcut.runtime.speed.measured import speed

N_CHUNKS = 4
TWO = Means(threads=2)


@pytest.fixture(scope="module")
def text():
    return Text.of("held-out", held_out_text()[:20_000])


@pytest.fixture(scope="module")
def comparison(bf16, f32, q4_k_m, text):
    scope = Scope(caches=(("q8_0", "q8_0"),), floor=2, routed=2)
    return compare([bf16, f32, q4_k_m], f32, [text], 512, N_CHUNKS, scope, TWO)


def test_the_reference_comes_first_and_only_once_then_its_floor(comparison, bf16, f32, q4_k_m):
    found = [(row.column.file.path, row.column.role) for row in comparison.rows]

    assert found[:2] == [(f32, REFERENCE), (f32, FLOOR)]
    assert found[2:] == [(path, CANDIDATE) for path in (f32, bf16, bf16, q4_k_m, q4_k_m)]
    assert comparison.reference.summary.kld is None


def test_a_small_change_of_weights_diverges_little_and_a_large_one_more(comparison, bf16, q4_k_m):
    plain = {row.column.file.path: row for row in comparison.files if row.column.type_k == "f16"}
    near, far = plain[bf16].summary, plain[q4_k_m].summary

    assert comparison.floor.summary.kld.value < near.kld.value < far.kld.value / 4
    assert near.same_top.value > far.same_top.value
    assert abs(near.log_ratio.value) < 0.01
    assert near.tails[0.5].value <= near.tails[0.99].value
    assert not set(plain[bf16].letters) & set(plain[q4_k_m].letters)


def test_a_cache_in_fewer_bits_costs_what_it_costs_apart_from_weights(comparison, q4_k_m):
    names = [effect.file for effect in comparison.effects]
    effect = comparison.effects[-1]

    assert names[-1] == q4_k_m.name
    assert 0 < effect.cache < effect.weights
    assert effect.both == pytest.approx(effect.weights + effect.cache, rel=0.5)


def test_routing_is_compared_where_the_cache_is_the_usual_one(comparison, bf16, q4_k_m):
    routing = {row.column.name: row.routing for row in comparison.rows if row.routing}

    assert set(routing) == {comparison.floor.column.name, bf16.name, q4_k_m.name}
    assert routing[bf16.name].same.value > routing[q4_k_m.name].same.value


def test_255_tokens_of_each_chunk_are_scored_of_the_floors_too(comparison):
    assert comparison.files[0].scores.nll.shape == (N_CHUNKS * 255,)
    assert comparison.floor.scores.nll.shape == (2 * 255,)
    assert len(comparison.floor.chunks) == 2
    assert comparison.protocol.n_scored == N_CHUNKS * 255


def test_perplexity_alone_needs_no_reference(comparison, f32, text):
    """And it is the same number, whatever is loaded beside the file."""
    alone = compare([f32], None, [text], 512, N_CHUNKS, means=TWO)

    value = alone.rows[0].summary.perplexity.value
    assert value == pytest.approx(comparison.reference.summary.perplexity.value, rel=1e-5)
    assert alone.rows[0].summary.kld is None and alone.rows[0].prefill


def test_perplexity_follows_from_full_logits(f32, text):
    """exp of the mean of -ln p over the second half of each chunk, its first token being BOS."""
    nll = []
    with Model.load(f32) as model, Context(model, ContextOptions(n_ctx=512)) as context:
        tokens = model.tokenize(text.content)
        for start in (0, 512):
            chunk = tokens[start : start + 512].copy()
            chunk[0] = model.bos or 0
            context.forget()
            logits = context.decode(chunk, outputs="all").astype(np.float64)
            log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            nll += [-log_p[i, chunk[i + 1]] for i in range(256, 511)]

    result = compare([f32], None, [text], chunks=2).rows[0].summary
    assert result.perplexity.value == pytest.approx(np.exp(np.mean(nll)), rel=1e-4)


def test_progress_is_told_of_every_chunk(f32, text):
    seen = []

    compare([f32], None, [text], chunks=2, means=Means(progress=lambda *told: seen.append(told)))

    assert seen == [("scoring", 1, 2), ("scoring", 2, 2)]


def test_several_texts_are_cut_one_by_one_and_shown_by_domain(f32, text):
    texts = [Text.of("a", text.content, "code"), Text.of("b", text.content[5_000:], "prose")]

    result = compare([f32], None, texts, n_ctx=128, chunks=2)

    assert result.protocol.n_chunks == 4
    (row,) = result.rows
    assert set(row.by_domain) == {"code", "prose"}
    mean = np.mean([np.log(each.perplexity.value) for each in row.by_domain.values()])
    assert np.exp(mean) == pytest.approx(row.summary.perplexity.value)


def test_own_answers_are_drawn_once_and_scored_by_all(bf16, q4_k_m, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prompts = Text.of("prompts", "def add(a, b):\nimport os\nclass Stack:\n")
    scope = Scope(framing="own")

    one = compare([q4_k_m], bf16, [prompts], 256, None, scope)
    other = compare([q4_k_m], bf16, [prompts], 256, None, scope)

    assert len(list((tmp_path / "gemcut" / "answers").iterdir())) == 1
    assert [c.digest for c in one.chunks] == [c.digest for c in other.chunks]
    assert one.files[0].summary.kld.value == other.files[0].summary.kld.value
    assert one.protocol.framing == "own"


def test_a_base_that_was_saved_stands_for_the_reference(bf16, q4_k_m, text, tmp_path):
    """As llama-perplexity's would: within what 16 bits and the cut at -16 change."""
    live = compare([q4_k_m], bf16, [text], chunks=3, means=TWO)
    save_kld(tmp_path / "base.kld", Column(live.reference.column.file), live.chunks, None, 2)

    found = compare_with_base(select([q4_k_m], None), tmp_path / "base.kld", means=TWO)

    assert found.reference.column.name == "base.kld"
    kld = found.files[0].summary.kld.value
    assert kld == pytest.approx(live.files[0].summary.kld.value, rel=1e-3)
    assert found.protocol.n_scored == live.protocol.n_scored
    assert any("16 below" in note for note in found.notes)


def test_a_reference_that_is_cut_itself_is_warned_of(q8_0, q4_k_m, text):
    found = compare([q4_k_m], q8_0, [text], chunks=2)

    assert any("8.62 bits per weight" in note for note in found.notes)


def test_speed_refuses_to_measure_nothing(f32):
    with pytest.raises(UsageError, match="at least 1"):
        speed(f32, n_generate=0)


def test_what_a_file_is_made_of_is_read_from_its_headers(q4_k_m):
    found = dissect(q4_k_m, "name")

    kinds = {kind for _, kind, _ in found.types}
    assert {"q4_k", "q6_k", "f32"} <= kinds
    assert sum(size for _, _, size in found.types) < q4_k_m.stat().st_size
    assert found.provenance["architecture"] == "gemma4"
    assert "q4_k_m" in found.provenance["plan"]


# --- errors --------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_refused(f32, text):
    with pytest.raises(UsageError, match="more than once"):
        compare([f32, f32], None, [text])
    with pytest.raises(UsageError, match="no file"):
        compare([], None, [text])
    with pytest.raises(TextError, match="no text"):
        compare([f32], None, [])
    with pytest.raises(UsageError, match="1 chunks"):
        compare([f32], None, [text], chunks=1)
    with pytest.raises(UsageError, match="too small"):
        compare([f32], None, [text], n_ctx=4)


def test_a_base_of_another_vocabulary_is_refused(bf16, tmp_path):
    from gemcut.errors import EngineError
    from gemcut.eval.scoring.kld_file import writing

    with writing(tmp_path / "base.kld", np.zeros((2, 16), np.int32), 96) as writer:
        for _ in range(2):
            writer.add(np.zeros((7, 96), np.float32))

    with pytest.raises(EngineError, match="vocabulary of 96 tokens, .* has 2048"):
        compare_with_base(select([bf16], None), tmp_path / "base.kld")


def test_answers_of_a_file_that_became_another_one_are_not_kept(bf16, q4_k_m, tmp_path):
    """They are told from others by the file's fingerprint, which was taken before."""
    path = tmp_path / "copy.gguf"
    shutil.copy(q4_k_m, path)
    (file,) = select([path], None)
    shutil.copy(bf16, path)
    asked = file, own.prompts([], 2), 256, None, 1, None, tmp_path / "answers"

    with pytest.raises(EngineError, match=r"copy.gguf: was changed while it was scored"):
        answers(*asked)
    assert not [*(tmp_path / "answers").iterdir()]

    shutil.copy(q4_k_m, path)
    assert answers(*asked) == answers(*asked) and len(answers(*asked)) == 2


def test_a_task_has_no_reference_where_the_reference_failed_in_some_way(
    bf16, q4_k_m, text, monkeypatch
):
    """What crashed once is not run again, and no other file takes its place."""
    asked = []

    def failing(*arguments):
        found = compare_selected(*arguments)
        assert found.floor
        floor = replace(found.floor, failure="llama.cpp crashed", summary=None, scores=None)
        rows = (floor if row is found.floor else row for row in found.rows)
        return replace(found, rows=tuple(rows))

    monkeypatch.setattr(comparing, "compare_selected", failing)
    monkeypatch.setattr(comparing, "read_texts", lambda paths: [text])
    monkeypatch.setattr(comparing, "read_task", lambda path: None)
    monkeypatch.setattr(comparing, "run_tasks", lambda _, of, *rest: asked.extend(of) or ())

    evaluate([q4_k_m], bf16, ["text"], chunks=2, routing=0, tasks=["task"], keep=False, threads=1)

    assert [(q4_k_m, CANDIDATE)] == [(column.file.path, column.role) for column in asked]


# --- parts ---------------------------------------------------------------------------------------


def test_a_chunk_begins_with_bos_in_place_of_its_first_token():
    tokens = np.arange(100, 125, dtype=np.int32)

    chunks = cut(tokens, 8, None, 2, "x")

    assert chunks.tolist() == [[2, *range(s + 1, s + 8)] for s in (100, 108, 116)]
    assert cut(tokens, 8, 2, None, "x")[:, 0].tolist() == [100, 108]
    assert tokens[0] == 100


@pytest.mark.parametrize("n_ctx", [8, 9, 512])
def test_scored_positions_predict_the_targets(n_ctx):
    chunk = Chunk(np.arange(n_ctx, dtype=np.int32), scored(n_ctx))

    assert (chunk.targets == np.flatnonzero(scored(n_ctx)) + 1).all()
    assert len(chunk.targets) == chunk.n_scored == n_ctx - 1 - n_ctx // 2


def test_a_split_model_counts_all_its_parts(tmp_path):
    names = [tmp_path / f"m-{n:05}-of-00002.gguf" for n in (1, 2)]
    for path in names:
        path.touch()

    assert parts(names[0]) == tuple(names)
    names[1].unlink()
    with pytest.raises(GGUFError, match="missing part"):
        parts(names[0])


def test_files_of_one_name_are_shown_with_their_folders(tmp_path, f32):
    copy = tmp_path / f32.name
    shutil.copy(f32, copy)

    first, second = select([f32, copy], None)

    assert (first.name, second.name) == tuple(f"{p.parent.name}/{p.name}" for p in (f32, copy))
    assert first.fingerprint == second.fingerprint
    with copy.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x99")
    assert fingerprint([copy]) != first.fingerprint
