"""A report as a sheet (CSV): a line for each file and comparison, ends of intervals apart."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import fields
from io import StringIO

from gemcut.eval.comparison import Comparison, Report, Row
from gemcut.eval.statistics.intervals import Estimate
from gemcut.eval.statistics.summary import TAILS, Summary

Cell = str | int | float | None

# A sheet program would take such a cell for a formula (CWE-1236).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def sheet(report: Report) -> str:
    """The text of the sheet; empty cells are what was not measured."""
    lines = [dict(_line(report, each, row)) for each in report.comparisons for row in each.rows]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = StringIO()
    writer = csv.writer(text, lineterminator="\r\n")  # RFC 4180
    writer.writerow(map(_cell, names))
    writer.writerows([_cell(line.get(name)) for name in names] for line in lines)
    return text.getvalue()


def _line(report: Report, comparison: Comparison, row: Row) -> Iterator[tuple[str, Cell]]:
    protocol, column = comparison.protocol, row.column
    yield from (("n_ctx", protocol.n_ctx), ("framing", protocol.framing))
    yield from _extent(comparison, row)
    yield from (("file", column.file.name), ("role", column.role))
    yield from (("type_k", column.type_k), ("type_v", column.type_v))
    yield from (("bytes", column.file.size), ("bpw", column.file.bpw))
    yield from (("fingerprint", column.file.fingerprint), ("tie", row.letters))
    yield from _summary(row.summary)
    for name in ("same", "overlap", "moved"):
        yield from _estimate(f"experts_{name}", getattr(row.routing, name, None))
    yield "scoring_tokens_per_s", row.prefill
    yield from _anatomy(report, column.file.name)
    yield "failure", row.failure


def _extent(comparison: Comparison, row: Row) -> Iterator[tuple[str, Cell]]:
    """What a row was scored on: the floor on fewer chunks than the others."""
    n_tokens, n_clusters = comparison.protocol.n_scored, comparison.protocol.n_clusters
    if row.chunks is not None and comparison.chunks and comparison.clusters is not None:
        n_tokens = sum(comparison.chunks[number].n_scored for number in row.chunks)
        n_clusters = len(set(comparison.clusters[[*row.chunks]].tolist()))
    yield from (("tokens", n_tokens), ("clusters", n_clusters))


def _summary(summary: Summary | None) -> Iterator[tuple[str, Cell]]:
    for field in fields(Summary):
        value = None if summary is None else getattr(summary, field.name)
        if field.name == "tails":
            for share in TAILS:
                yield from _estimate(f"kld_{100 * share:g}_percent", (value or {}).get(share))
        elif field.name == "perplexity_error_independent":
            yield field.name, value
        else:
            yield from _estimate(field.name, value)


def _anatomy(report: Report, name: str) -> Iterator[tuple[str, Cell]]:
    file = next((file for file in report.files if file.name == name), None)
    speed = file.speed if file else None
    yield "predicted_kld", file.predicted if file else None
    yield "prefill_tokens_per_s", speed.prefill if speed else None
    yield "decode_tokens_per_s", speed.decode if speed else None
    for place, size in (file.memory if file else {}).items():
        yield f"peak_bytes_{place}", size


def _estimate(name: str, estimate: Estimate | None) -> Iterable[tuple[str, Cell]]:
    ends = (None,) * 3 if estimate is None else (estimate.value, estimate.low, estimate.high)
    return zip((name, f"{name}_low", f"{name}_high"), ends, strict=True)


def _cell(value: Cell) -> Cell:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
