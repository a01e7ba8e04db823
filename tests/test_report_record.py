"""A report as it is kept: read back whole, or refused with the reason."""

import csv
import json
import re
from dataclasses import make_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from markdown_it import MarkdownIt
from typing_extensions import TypeAliasType

from gemcut.errors import ReportError
from gemcut.eval.report import record
from gemcut.eval.report.arrays import to_arrays
from gemcut.eval.report.card import card, escape
from gemcut.eval.report.plain import to_plain
from gemcut.eval.report.record import RECORD, SCORES, read, to_dict, write
from gemcut.eval.report.sheet import sheet
from tests.reports import report, small

HOSTILE = ("a|b`*_x_*<img src=x onerror=alert(1)>.gguf", "=HYPERLINK(1)&amp;$x$.gguf")


@pytest.fixture(scope="module")
def whole():
    return report()


@pytest.fixture
def kept(tmp_path):
    write(small(), tmp_path)
    return tmp_path


def edited(folder, edit):
    """The record with something else in it."""
    document = json.loads((folder / RECORD).read_text())
    edit(document)
    (folder / RECORD).write_text(json.dumps(document))
    return folder


# --- record --------------------------------------------------------------------------------------


def test_a_report_is_read_back_whole(whole, tmp_path):
    """Every number, and per token to 7 digits; what is written again is the same, byte for byte."""
    write(whole, tmp_path)
    found = read(tmp_path)
    first = (tmp_path / RECORD).read_bytes(), (tmp_path / SCORES).read_bytes()
    write(found, tmp_path)

    assert to_dict(found) == to_dict(whole)
    assert first == ((tmp_path / RECORD).read_bytes(), (tmp_path / SCORES).read_bytes())
    before, after = to_arrays(whole), to_arrays(found)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    ours, theirs = whole.comparisons[0], found.comparisons[0]
    assert [c.digest for c in ours.chunks] == [c.digest for c in theirs.chunks]
    assert theirs.rows[2].column.key == ours.rows[2].column.key
    assert theirs.rows[2].scores.divergence.kld.dtype == np.float64


def test_arrays_by_another_name_are_left_to_the_other_file():
    """As NumPy's NDArray is an alias from 2.5 on."""
    number = TypeVar("number")
    alias = TypeAliasType("alias", np.ndarray[Any, np.dtype[number]], type_params=(number,))

    array = alias[np.int32]
    found = make_dataclass("Found", [("n", int), ("each", array), ("maybe", array | None)])

    assert {"n": 3} == to_plain(found(3, np.zeros(2, np.int32), None))


def test_no_path_and_no_text_is_kept(whole, tmp_path):
    write(whole, tmp_path)

    text = (tmp_path / RECORD).read_text()
    assert "/models" not in text and "nll" not in json.loads(text)["comparisons"][0]["rows"][0]


def test_numbers_that_are_none_are_kept(tmp_path):
    """An error bar of infinity is no JSON, but a result."""
    found = small()
    first = found.comparisons[0]
    row = first.rows[-1]
    assert row.summary and row.summary.kld
    kld = replace(row.summary.kld, error=float("inf"), high=float("nan"))
    row = replace(row, summary=replace(row.summary, kld=kld), failure="half of it")
    write(replace(found, comparisons=(replace(first, rows=(*first.rows[:-1], row)),)), tmp_path)

    again = read(tmp_path).comparisons[0].rows[-1]
    assert again.summary.kld.error == float("inf") and np.isnan(again.summary.kld.high)
    assert again.failure == "half of it"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda d: d.update(version=2), "format 3 but of 2"),
        (lambda d: d.update(comparisons=3), "comparisons is 3, wanted a list"),
        (lambda d: d.update(more=1), "wanted comparisons"),
        (lambda d: d["comparisons"][0]["protocol"].update(n_ctx="x"), "n_ctx is 'x'"),
        (lambda d: d["comparisons"][0]["protocol"].pop("n_ctx"), "'n_ctx' is missing"),
        (lambda d: d["comparisons"][0]["rows"][0].update(letters=None), "letters is None"),
        (lambda d: d["files"][0].update(types=[["a", "b"]]), "wanted a list"),
        (lambda d: d.update(scores_sha256="0"), "not the scores of report.json"),
        (lambda d: d["comparisons"][0].update(rows=[]), None),
    ],
)
def test_a_damaged_record_says_where(kept, edit, reason):
    edited(kept, edit)
    if reason is None:  # arrays that nothing asks for are no harm
        assert read(kept).comparisons[0].rows == ()
        return
    with pytest.raises(ReportError, match=re.escape(reason)):
        read(kept)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": NaN}', "[" * 100_000, "\xff"])
def test_what_is_no_record_is_refused(kept, text):
    (kept / RECORD).write_bytes(text.encode("latin-1"))

    with pytest.raises(ReportError):
        read(kept)


def with_scores(folder, edit):
    """The scores with something else among them, and the digest to match."""
    with np.load(folder / SCORES) as file:
        arrays = dict(file)
    edit(arrays)
    np.savez(folder / SCORES, **arrays)
    return edited(folder, lambda d: d.update(scores_sha256=record._digest(folder / SCORES)))


@pytest.mark.parametrize(
    "edit",
    [
        lambda a: a.update({"0.1.nll": a["0.1.nll"][:-1]}),
        lambda a: a.update({"0.1.nll": a["0.1.nll"].astype("f8")}),
        lambda a: a.update({"0.1.kld": np.array([None] * 3)}),
        lambda a: a.pop("0.1.correct"),
        lambda a: a.update({"0.tokens": a["0.tokens"] + 1}),
        lambda a: a.update({"0.lengths": a["0.lengths"] * 1000}),
        lambda a: a.update({"0.lengths": a["0.lengths"] * 0}),
        lambda a: a.update({"0.clusters": a["0.clusters"][:3]}),
        lambda a: a.update({"task0.0.chosen": np.int32(3)}),
    ],
)
def test_scores_that_are_not_as_said_are_refused(kept, edit):
    """Sizes and types are looked at before anything is read; nothing is ever unpickled."""
    with_scores(kept, edit)

    with pytest.raises(ReportError, match=r"scores.npz: not the scores of this report"):
        read(kept)


def test_a_header_that_lies_reserves_no_memory(kept):
    """An array said to be of a terabyte is refused by the bytes that are there."""

    def lie(arrays):
        arrays["0.1.nll"] = np.zeros(4, "<f4")

    with_scores(kept, lie)
    data = (kept / SCORES).read_bytes()
    (kept / SCORES).write_bytes(data.replace(b"(4,), }" + b" " * 7, b"(9999999999,)}", 1))
    edited(kept, lambda d: d.update(scores_sha256=record._digest(kept / SCORES)))

    with pytest.raises(ReportError):
        read(kept)


@pytest.mark.parametrize("name", [RECORD, SCORES])
def test_a_missing_file_is_named(kept, name):
    (kept / name).unlink()

    with pytest.raises(ReportError, match=f"{name}: cannot be read: No such file"):
        read(kept)


# --- sheet ---------------------------------------------------------------------------------------


def test_the_sheet_says_on_how_much_each_line_was_scored(whole):
    """The floor on less than the others."""
    (found, *_), chunks = whole.comparisons, (0, 3, 5)
    rows = [replace(r, chunks=chunks if r is found.floor else None) for r in found.rows]
    fewer = replace(whole, comparisons=(replace(found, rows=tuple(rows)),))

    lines = list(csv.DictReader(sheet(fewer).splitlines()))

    extent = {line["role"]: (int(line["tokens"]), int(line["clusters"])) for line in lines}
    assert extent["floor"] == (3 * found.chunks[0].n_scored, 3)
    assert extent["candidate"] == (found.protocol.n_scored, found.protocol.n_clusters)


def test_the_sheet_has_plain_numbers(whole):
    lines = list(csv.DictReader(sheet(whole).splitlines()))
    row = whole.comparisons[0].rows[2]

    assert len(lines) == len(whole.comparisons[0].rows)
    assert float(lines[2]["kld"]) == row.summary.kld.value
    assert float(lines[2]["kld_low"]) < float(lines[2]["kld"]) < float(lines[2]["kld_high"])
    assert (lines[0]["role"], lines[0]["kld"]) == ("reference", "")
    assert float(lines[2]["experts_same"]) == row.routing.same.value
    assert lines[2]["decode_tokens_per_s"] == "12.0"


@pytest.mark.parametrize("begin", "=+-@\t\r")
def test_no_cell_is_a_formula(begin):
    lines = list(csv.DictReader(sheet(small((f"{begin}1+1.gguf", "b.gguf"))).splitlines(True)))

    assert lines[2]["file"].startswith("'") and begin in lines[2]["file"]
    assert lines[2]["log_ratio_low"].lstrip("-").replace(".", "").replace("e-", "").isdigit()


# --- card ----------------------------------------------------------------------------------------


def rendered(text):
    """The card as HTML, and its header."""
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), MarkdownIt("gfm-like", {"linkify": False}).render(body)


def test_the_card_is_ready_for_the_hub(whole):
    header, html = rendered(card(whole, "plots/size-kld.png"))

    assert header == {
        "base_model": "google/gemma-4-26B-A4B-it",
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "library_name": "gguf",
        "tags": ["gguf", "quantized", "mixture-of-experts", "conversational", "gemcut"],
    }
    for needed in ("16GB.gguf", "Types by role", "IQ4_XS".lower(), "0" * 63, "Q4.gguf", "<img src"):
        assert needed in html
    assert "/models" not in html


def test_what_is_not_known_is_not_claimed():
    files = tuple(replace(file, provenance={}, types=()) for file in small().files)
    header, _ = rendered(card(small(files=files, diagnosis=None)))

    assert header == {"library_name": "gguf", "tags": ["gguf", "quantized", "gemcut"]}


def test_names_break_no_table_and_are_no_markup():
    """Every row has as many cells as the head, and names come out as they are."""
    _, html = rendered(card(small(HOSTILE)))

    assert "<img" not in html and "<em>" not in html
    for table in re.findall(r"<table>(.*?)</table>", html, re.DOTALL):
        counts = {
            len(re.findall("<t[hd]", row)) for row in re.findall("<tr>(.*?)</tr>", table, re.S)
        }
        assert len(counts) == 1
    assert "a|b`*_x_*&lt;img src=x onerror=alert(1)&gt;.gguf" in html
    assert "=HYPERLINK(1)&amp;amp;$x$.gguf" in html


@pytest.mark.parametrize("name", ["---", "1. x", "+ x", "# x", "> x", "a\nb", "[x](javascript:1)"])
def test_no_text_begins_a_block(name):
    """In sentences, too, which are items of a list."""
    _, html = rendered(card(small((f"{name}.gguf", "other.gguf"), notes=(name,))))

    assert not re.search(r"<hr|<ol|<blockquote|<a |<li>\s*<ul|<li>\s*<h1", html)


def test_a_value_of_the_header_is_a_string():
    """Whatever a file says of itself adds no key to the header."""
    hostile = {"license": 'mit"\nhidden: true # x'}
    files = tuple(replace(file, provenance=hostile) for file in small().files)
    header, _ = rendered(card(small(files=files)))

    assert "hidden" not in header and header["license"].startswith('mit"')


def test_file_names_stay_readable_in_the_source():
    assert escape("demo-Q4_K_M.gguf") == "demo-Q4_K_M.gguf"
