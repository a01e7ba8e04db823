"""Comparing files on text, with the demo's model and its quantised copies."""

import json
import shutil

import numpy as np
import pytest

from gemcut.demo.text import held_out_text
from gemcut.engine import ContextOptions
from gemcut.errors import EngineError, GGUFError, TextError, UsageError
from gemcut.eval.compare import compare
from gemcut.eval.files import fingerprint, parts, select
from gemcut.eval.intervals import Estimate
from gemcut.eval.statistics import summarise
from gemcut.eval.table import format_estimate, table, to_dict
from gemcut.eval.texts import Text, cut, scored, targets
from gemcut.llama import Context, Model
from gemcut.runtime.speed.measured import speed
from gemcut.score import Divergence, Scores

N_CHUNKS = 4


@pytest.fixture(scope="module")
def text():
    return Text.of("held-out", held_out_text()[:20_000])


@pytest.fixture(scope="module")
def comparison(bf16, f32, q4_k_m, text):
    return compare([bf16, f32, q4_k_m], f32, [text], chunks=N_CHUNKS, threads=2)


def test_the_reference_comes_first_and_only_once(comparison, bf16, f32, q4_k_m):
    assert [row.file.path for row in comparison.rows] == [f32, bf16, q4_k_m]
    assert comparison.rows[0].summary.kld is None


def test_a_small_change_of_weights_diverges_little_and_a_large_one_more(comparison):
    _, near, far = (row.summary for row in comparison.rows)

    assert 0 < near.kld.value < far.kld.value / 4
    assert near.same_top.value > far.same_top.value
    assert abs(near.log_ratio.value) < 0.01
    assert near.tails[0.5].value <= near.tails[0.99].value


def test_255_tokens_of_each_chunk_are_scored(comparison):
    assert comparison.rows[1].scores.nll.shape == (N_CHUNKS, 255)
    assert comparison.protocol.n_scored == N_CHUNKS * 255


def test_perplexity_alone_needs_no_reference(comparison, f32, text):
    """And it is the same number, whatever is loaded beside the file."""
    alone = compare([f32], None, [text], chunks=N_CHUNKS, threads=2)

    value = alone.rows[0].summary.perplexity.value
    assert value == pytest.approx(comparison.rows[0].summary.perplexity.value, rel=1e-5)
    assert alone.rows[0].summary.kld is None and alone.rows[0].prefill > 0


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

    compare([f32], None, [text], chunks=2, progress=lambda done, total: seen.append((done, total)))

    assert seen == [(1, 2), (2, 2)]


def test_several_texts_are_cut_one_by_one(f32, text):
    other = Text.of("other", text.content[5_000:])

    result = compare([f32], None, [text, other], n_ctx=128, chunks=2)

    assert result.protocol.n_chunks == 4


def test_the_table_and_the_dictionary_say_the_same(comparison, f32):
    shown, data = table(comparison), to_dict(comparison)

    assert shown.row_count == len(data["files"]) == 3
    assert data["reference"] == f32.name
    assert data["files"][2]["kld"]["value"] == comparison.rows[2].summary.kld.value
    assert len(data["protocol"]["texts"][0]["sha256"]) == 64
    assert str(f32.parent) not in json.dumps(data)


def test_speeds_fill_the_last_column(comparison, f32):
    measured = speed(f32, n_prompt=64, n_generate=4, repeats=1, threads=2)

    data = to_dict(comparison, {f32.name: measured})

    assert data["files"][0]["speed"]["decode"] == measured.decode > 0
    assert data["files"][1]["speed"] is None
    assert table(comparison, {f32.name: measured}).columns[-1].header == "prefill, decode t/s"


def test_speed_refuses_to_measure_nothing(f32):
    with pytest.raises(UsageError, match="at least 1"):
        speed(f32, n_generate=0)


# --- errors --------------------------------------------------------------------------------------


def test_a_text_too_short_says_how_many_tokens_it_has(f32):
    with pytest.raises(TextError, match=r"short: \d+ tokens, wanted 1024"):
        compare([f32], None, [Text.of("note", "hello world")])


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b" \n", "empty"), (b"caf\xe9", "0xe9 at offset 3")]
)
def test_texts_that_cannot_be_scored(tmp_path, content, message):
    path = tmp_path / "note.txt"
    path.write_bytes(content)

    with pytest.raises(TextError, match=message):
        Text.read(path)


def test_a_missing_text_is_named(tmp_path):
    with pytest.raises(TextError, match="note.txt: cannot read this text: No such file"):
        Text.read(tmp_path / "note.txt")


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


def test_another_tokenizer_is_refused(f32, bf16, text, monkeypatch):
    from gemcut.eval import compare as module

    tokens = module._tokens
    flip = {f32: 1, bf16: -1}
    monkeypatch.setattr(
        module, "_tokens", lambda s, t, special: tokens(s, t, special)[:: flip[s.file.path]]
    )

    with pytest.raises(EngineError, match="cannot be compared .* other tokens"):
        compare([bf16], f32, [text])


def test_logits_that_are_not_finite_name_file_and_chunk(f32, text, monkeypatch):
    from gemcut.eval.compare import _Scorer

    logits = _Scorer.logits

    def faulty(self, chunk):
        result = logits(self, chunk).copy()
        result[: 3 if len(self.seconds) == 2 else 0, 5] = np.nan
        return result

    monkeypatch.setattr(_Scorer, "logits", faulty)

    with pytest.raises(EngineError, match=f"{f32.name}: chunk 2 of 3: 3 of 255"):
        compare([f32], None, [text], chunks=3)


# --- parts ---------------------------------------------------------------------------------------


def test_a_chunk_begins_with_bos_in_place_of_its_first_token():
    tokens = np.arange(100, 125, dtype=np.int32)

    chunks = cut(tokens, 8, None, 2, "x")

    assert chunks.tolist() == [[2, *range(s + 1, s + 8)] for s in (100, 108, 116)]
    assert cut(tokens, 8, 2, None, "x")[:, 0].tolist() == [100, 108]
    assert tokens[0] == 100


@pytest.mark.parametrize("n_ctx", [8, 9, 512])
def test_scored_positions_predict_the_targets(n_ctx):
    chunk = np.arange(n_ctx, dtype=np.int32)

    assert (targets(chunk) == np.flatnonzero(scored(n_ctx)) + 1).all()
    assert len(targets(chunk)) == n_ctx - 1 - n_ctx // 2


def test_errors_are_clustered_by_chunk():
    """Chunks that are constant inside tell as much as one number each."""
    values = np.repeat([[1.0], [2.0], [3.0]], 50, axis=1)

    summary = summarise(Scores(values, values < 1), np.arange(3), 2.0)

    assert summary.perplexity.value == pytest.approx(np.exp(2))
    assert summary.perplexity_error_independent < summary.perplexity.error / 5
    assert summary.bits_per_byte.value == pytest.approx(2 / np.log(2) / 2)
    assert summary.bits_per_byte.error == pytest.approx(1 / np.sqrt(3) / np.log(2) / 2)


def test_every_comparison_with_a_reference_follows_its_definition():
    random = np.random.default_rng(3)
    nll, other = random.gamma(2, size=(2, 6, 40))
    right, wrong = random.random((2, 6, 40)) < 0.5
    kld, reverse, delta = random.gamma(0.3, size=(3, 6, 40))
    divergence = Divergence(kld, reverse, delta - 0.3, right == wrong)

    found = summarise(Scores(other, wrong, divergence), np.arange(6), 1.0, Scores(nll, right))

    values = {
        "log_ratio": (other - nll).mean(),
        "kld": kld.mean(),
        "reverse": reverse.mean(),
        "same_top": (right == wrong).mean(),
        "lost": (right & ~wrong).mean(),
        "gained": (wrong & ~right).mean(),
        "rms_delta_p": np.sqrt(((delta - 0.3) ** 2).mean()),
    }
    for name, value in values.items():
        estimate = getattr(found, name)
        assert estimate.value == pytest.approx(value), name
        assert estimate.low < estimate.value < estimate.high and estimate.error > 0
    assert {share: tail.value for share, tail in found.tails.items()} == pytest.approx(
        {share: np.quantile(kld, share) for share in (0.5, 0.9, 0.99, 0.999)}
    )


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

    assert (first.name, second.name) == (str(f32), str(copy))
    assert first.fingerprint == second.fingerprint
    with copy.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x99")
    assert fingerprint([copy]) != first.fingerprint


def shown_as(value, half):
    """An estimate with an interval of that half."""
    return Estimate(value, half / 2, value - half, value + half)


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        (shown_as(0.03741, 0.00031), "0.03741 ± 0.00031"),
        (shown_as(12.345, 0.67), "12.35 ± 0.67"),
        (shown_as(651.3, 12), "651 ± 12"),
        (shown_as(1.24e-9, 3e-10), "1.2e-09 ± 3e-10"),
        (shown_as(1.0, 0.0), "1"),
    ],
)
def test_numbers_are_shown_to_the_precision_of_their_error(estimate, shown):
    assert format_estimate(estimate) == shown


def test_perplexities_show_four_digits_whatever_their_error():
    """The error of each is the text's; the difference between two files is far smaller."""
    assert format_estimate(shown_as(651.34, 94.21), digits=4) == "651.3 ± 94.2"
