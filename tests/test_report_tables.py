"""What a terminal shows of a comparison: tables that fit, sentences that say what is known."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from gemcut.eval.report import tables
from gemcut.eval.report.table import fit, show
from gemcut.eval.report.verdict import verdict
from gemcut.eval.report.words import format_change, format_estimate, portable, short_names
from gemcut.eval.statistics.intervals import Estimate
from gemcut.eval.statistics.summary import Summary
from gemcut.eval.texts.diagnosis import Diagnosis
from tests.reports import FILES, comparison, estimate, report, small


@pytest.fixture(scope="module")
def whole():
    return report()


def shown(found, width=200):
    """What a terminal of that width shows."""
    text = StringIO()
    console = Console(width=width, file=text, markup=False, emoji=False, highlight=False)
    console.print(show(found, by_domain=True))
    return text.getvalue()


def letters(found, **by_name):
    """A comparison whose files have these letters."""
    rows = [replace(row, letters=by_name.get(label(row), row.letters)) for row in found.rows]
    return replace(found, rows=tuple(rows))


def label(row):
    return row.column.name.removesuffix(".gguf").split("-")[-1]


# --- numbers and names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (0.03741, 0.00031, "0.03741 ± 0.00031"),
        (12.345, 0.67, "12.35 ± 0.67"),
        (651.3, 12, "651 ± 12"),
        (1.24e-9, 3e-10, "1.2e-09 ± 3e-10"),
        (1.0, 0.0, "1"),
        (2.5, float("inf"), "2.5"),
        (2.5, float("nan"), "2.5"),
    ],
)
def test_numbers_are_shown_to_the_precision_of_their_error(value, half, text):
    assert format_estimate(estimate(value, half)) == text
    assert "±" not in format_estimate(Estimate(value, float("inf"), 0.0, 1.0))


def test_perplexities_show_four_digits_whatever_their_error():
    """The error of each is the text's; the difference between two files is far smaller."""
    assert format_estimate(estimate(651.34, 94.21), digits=4) == "651.3 ± 94.2"


def test_changes_have_a_sign():
    """ln 1.01 is 1 % more; a ratio beyond any use does not overflow."""
    assert format_change(Estimate(0.00995, 0.0005, 0.00895, 0.01095)) == "+1.00 ± 0.10"
    assert format_change(estimate(-0.01, 0.002)).startswith("-1.00")
    assert format_change(estimate(5000.0, 1.0)).startswith("+")


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["m-Q4_K_M.gguf", "m-Q4_K_S.gguf"], ["Q4_K_M", "Q4_K_S"]),
        (["a.gguf", "b.gguf"], ["a", "b"]),
        (["m-a.gguf"], ["m-a"]),
        (["m-.gguf", "m-a.gguf"], ["m-", "a"]),
        (["m-a.gguf (KV q8_0/q8_0)", "m-b.gguf (KV f16/q4_0)"], ["a, KV q8_0", "b, KV f16/q4_0"]),
    ],
)
def test_short_names_tell_files_apart(names, short):
    assert list(short_names(names).values()) == short


def test_a_command_for_others_has_no_folders():
    words = portable(["gemcut", "eval", "/a/b.gguf", "--reference=/a/c.gguf", "-c", "x/y"])

    assert words == ("gemcut", "eval", "b.gguf", "--reference=c.gguf", "-c", "x/y")


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120, 200])
def test_tables_fit_a_terminal(whole, width):
    """No line is longer, and what is left out is not what the answer stands on."""
    text = shown(whole, width)

    assert max(map(cell_len, text.splitlines())) <= width
    for needed in ("Q4_K_M", "KLD", "same top %", "tie", "floor", "16GB", "prose"):
        assert needed in text


def test_a_wide_terminal_shows_every_column(whole):
    heads = [heading.title for heading in tables.main(whole.comparisons[0]).headings]
    text = shown(whole, 220)

    assert {"PPL", "PPL %", "99 %", "99.9 %", "flips %", "bits/byte"} <= set(heads)
    assert all(head in text for head in heads)


def test_columns_are_explained_only_where_they_are_shown(whole):
    main = tables.main(whole.comparisons[0])

    assert "flips %:" in main.legend
    assert "flips %:" not in fit(main, 80).legend


def test_names_stay_whole_where_there_is_room():
    grid = tables.main(comparison(dict(list(FILES.items())[:1]), caches=False))

    assert fit(grid, 300).rows[-1][0] == "gemma-4-26B-A4B-it-Q8_0.gguf"
    assert fit(grid, 90).rows[-1][0] == "Q8_0"


def test_the_floor_is_no_file(whole):
    """It has neither size nor perplexity of its own; the reference has no divergence."""
    reference, floor, *_ = (
        dict(zip((h.title for h in grid.headings), row, strict=True))
        for grid in [tables.main(whole.comparisons[0])]
        for row in grid.rows
    )

    assert (floor["file"], floor["size"], floor["PPL"]) == ("floor", "", "")
    assert reference["KLD"] == "reference" and floor["KLD"]


def test_a_file_that_failed_is_shown_and_said():
    found = comparison(dict(list(FILES.items())[:2]), caches=False)
    failed = replace(found.rows[-1], summary=None, scores=None, failure="llama.cpp crashed")
    found = replace(found, rows=(*found.rows[:-1], failed))

    assert "failed" in tables.main(found).rows[-1]
    assert verdict(found)[-1] == "Q6_K could not be scored: llama.cpp crashed."


def test_without_a_reference_there_is_perplexity_alone():
    found = small().comparisons[0]
    summaries = [row.summary for row in found.files if row.summary]
    bare = [
        Summary(s.perplexity, s.perplexity_error_independent, s.bits_per_byte) for s in summaries
    ]
    rows = [replace(r, summary=s) for r, s in zip(found.files, bare, strict=True)]
    alone = replace(found, rows=tuple(rows))

    heads = [heading.title for heading in tables.main(alone).headings]
    assert heads == ["file", "size", "bpw", "PPL", "bits/byte", "tie"]
    assert "lowest perplexity" in verdict(alone)[0] and "without a reference" in verdict(alone)[0]


def test_every_part_of_a_report_has_a_table(whole):
    """Routing with its worst block, cache effects, tasks with McNemar's p, speed, predictions."""
    found = whole.comparisons[0]

    assert tables.routing(found).rows[0][0] == "floor"
    assert len(tables.effects(found).rows) == 4
    assert tables.tasks(whole.tasks[0]).rows[1][-1] == "0.2"
    assert tables.p_value(0.00012) == "< 0.001"
    assert tables.speeds(whole).headings[3].title == "CUDA0 peak"
    assert [row[0][-9:] for row in tables.predictions(whole).rows] == ["16GB.gguf", "12GB.gguf"]
    assert "norms, scales" not in [h.title for h in tables.types(whole).headings]


def test_only_types_chosen_one_by_one_are_ours(whole):
    """A stock mixture that gemcut wrote carries a plan, too."""
    assert {name.split("-")[-1] for name in tables.plans(whole)} == {"16GB.gguf", "12GB.gguf"}


def test_a_terminal_does_not_obey_names():
    """Escape sequences and line breaks in names of files are shown as something else."""
    text = shown(small(("a\x1b[31m\nb.gguf", "c\u202e.gguf")))

    assert "\x1b[31m" not in text and "\u202e" not in text


def test_meaningless_perplexity_is_said_first():
    diagnosis = Diagnosis("raw", {"raw": 19000.0, "chat": 18.0}, True, True, "Use --framing chat.")

    assert shown(small(diagnosis=diagnosis)).startswith("Perplexity with framing raw means nothing")


# --- sentences -----------------------------------------------------------------------------------


def test_the_closest_file_is_named_first(whole):
    assert verdict(whole.comparisons[0])[0].startswith("Q8_0 is closest to BF16: mean KL")


def test_better_needs_letters_that_differ():
    """16GB is smaller and its mean lower; whether that can be said is not up to the mean."""
    found = comparison({n: FILES[n] for n in FILES if "Q4_K_M" in n or "16GB" in n}, caches=False)

    apart = verdict(letters(found, **{"Q4_K_M": "b", "16GB": "a"}))
    tied = verdict(letters(found, **{"Q4_K_M": "ab", "16GB": "a"}))

    assert any("16GB (15.90 GB) is 5.4 % smaller than Q4_K_M" in sentence for sentence in apart)
    assert not any("measurably" in sentence for sentence in tied)
    assert "cannot be told apart as the closest" in tied[0] and "16GB is the smallest" in tied[0]


def test_caches_do_not_compete_with_files(whole):
    """The reference with another cache may be the closest of all, and answers another question."""
    assert not any("KV" in sentence for sentence in verdict(whole.comparisons[0]))


def test_what_is_not_seen_to_differ_from_the_floor_is_not_at_it_for_that():
    """Two chunks tell nothing from the floor, even what is five hundred times as far away."""
    found = comparison({"m-Q4_0.gguf": (4.6, 4.8, 0.018)}, caches=False)

    def said(beyond):
        rows = [
            replace(row, beyond_floor=beyond) if row.column.role == "candidate" else row
            for row in found.rows
        ]
        return "".join(verdict(replace(found, rows=tuple(rows))))

    unsure, above = said(estimate(0.018, 0.02)), said(estimate(0.018, 0.01))
    assert "cannot be told from the noise floor" in unsure and "is at the noise" not in unsure
    assert "times the noise floor" in above and "cannot" not in above
    assert "floor" not in said(Estimate(0.018, float("inf"), float("-inf"), float("inf")))


def test_a_perplexity_that_fell_shows_no_loss_either():
    found = comparison({"m-Q4_0.gguf": (4.6, 4.8, 0.018)}, caches=False)
    *rest, row = found.rows
    assert row.summary
    better = replace(row, summary=replace(row.summary, log_ratio=estimate(-0.02, 0.01)))

    sentences = verdict(replace(found, rows=(*rest, better)))

    assert any("By perplexity alone" in each for each in sentences)


def test_notes_are_shown(whole):
    """As that the reference is quantized itself."""
    noted = replace(whole.comparisons[0], notes=("the reference has 8.62 bits per weight",))

    text = shown(replace(whole, comparisons=(noted,), notes=("m.gguf: its speed is not known",)))

    assert "Note: the reference has 8.62 bits" in text
    assert "Note: m.gguf: its speed is not known." in text


def test_at_the_floor_nothing_was_lost():
    found = comparison({"m-Q8_0.gguf": (26.8, 8.5, 6e-6)}, caches=False)

    assert any("at the noise floor" in sentence for sentence in verdict(found))
