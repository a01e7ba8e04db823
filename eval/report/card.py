"""A report as a model card: Markdown for a Hub repository, with only what is known in its header.

Names come out of foreign files: whatever is in them is shown, and neither breaks a table nor is
markup. In the header, which is YAML, values are in JSON's notation, which YAML takes as it is.
"""

import json
import re
from collections.abc import Iterable, Iterator

from gemcut.errors import printable
from gemcut.eval.comparison import Comparison, Report
from gemcut.eval.report import facts, tables
from gemcut.eval.report.facts import model_name, said_by_all
from gemcut.eval.report.grid import Grid
from gemcut.eval.report.verdict import verdict
from gemcut.eval.report.words import diagnosed

# Underscores within a word are no markup, and file names are full of them.
_SPECIAL = re.compile(r"[\\`*\[\]<>#|~$&]|(?<![^\W_])_|_(?![^\W_])")
# What begins a list or a heading at the beginning of a line.
_BEGIN = re.compile(r"^(\d*)([-+=.)])")
_HUB = re.compile(r"https?://(?:www\.)?huggingface\.co/([\w.-]{1,96}/[\w.-]{1,96})/?")


def card(report: Report, picture: str | None = None) -> str:
    """The text of a README.md. picture: of size and loss, a path as it is in the repository."""
    return "\n\n".join(part for part in _parts(report, picture) if part) + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\g<0>", printable(text.strip()))


def _line(text: str) -> str:
    """The same at the beginning of a line."""
    return _BEGIN.sub(r"\1\\\2", escape(text))


def _parts(report: Report, picture: str | None) -> Iterator[str]:
    yield _header(report)
    yield f"# {escape(_heading(report))}"
    yield from (_listed(verdict(comparison)) for comparison in report.comparisons[:1])
    if picture is not None:
        yield f"![KL divergence against size]({picture})"
    yield "## Files and what they lost"
    for comparison in report.comparisons:
        yield from _comparison(comparison)
    yield from _section("Speed and memory", tables.speeds(report))
    yield from _section("Tasks", *map(tables.tasks, report.tasks))
    yield from _section("Recipe", tables.types(report), tables.predictions(report))
    yield from _section("Provenance", facts.said(report), facts.files(report))
    protocols = map(facts.protocol, report.comparisons)
    yield from _section("How it was measured", *protocols, facts.texts(report))
    if report.diagnosis is not None:
        yield _line(diagnosed(report.diagnosis))
    yield _listed(report.notes)
    yield from map(_code, facts.commands(report))


def _header(report: Report) -> str:
    known: dict[str, object] = {}
    if base := _base(report):
        known |= {"base_model": base, "base_model_relation": "quantized"}
    if license_ := said_by_all(report, "license"):
        known["license"] = license_
    known |= {"library_name": "gguf", "tags": _tags(report)}
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in known.items()]
    return "\n".join(["---", *lines, "---"])


def _base(report: Report) -> str | None:
    """The Hub's id of the model that all files were made from, where they say one."""
    match = _HUB.fullmatch(said_by_all(report, "base model's home") or "")
    return match and match[1]


def _tags(report: Report) -> list[str]:
    tags = ["gguf", "quantized"]
    if any("_exps." in name for file in report.files for name, _, _ in file.types):
        tags.append("mixture-of-experts")
    if report.diagnosis is not None and report.diagnosis.is_chat:
        tags.append("conversational")
    return [*tags, "gemcut"]


def _heading(report: Report) -> str:
    name = model_name(report)
    return f"{name} in GGUF" if name else "Files in GGUF, compared"


def _comparison(comparison: Comparison) -> Iterator[str]:
    yield _table(tables.main(comparison))
    others = (tables.domains(comparison), tables.routing(comparison), tables.effects(comparison))
    yield from (_table(grid) for grid in others if grid is not None)
    yield _listed(comparison.notes)


def _section(title: str, *grids: Grid | None) -> Iterator[str]:
    found = [grid for grid in grids if grid is not None and grid.rows]
    if found:
        yield f"## {title}"
        yield from map(_table, found)


def _table(grid: Grid) -> str:
    heads = [escape(heading.title) for heading in grid.headings]
    rule = ["---:" if heading.right else "---" for heading in grid.headings]
    rows = [[escape(cell) for cell in row] for row in grid.rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))
    notes = " ".join(filter(None, (*grid.notes, grid.legend)))
    title = f"**{escape(grid.title)}**" if grid.title else ""
    return "\n\n".join(filter(None, (title, table, _line(notes))))


def _listed(sentences: Iterable[str]) -> str:
    return "\n".join(f"* {_line(sentence)}" for sentence in sentences)


def _code(command: str) -> str:
    """A block of code, whose fence is longer than any run of backticks in it."""
    text = printable(command)
    runs = [len(run) for run in re.findall("`+", text)]
    fence = "`" * max(3, 1 + max(runs, default=0))
    return f"{fence}sh\n{text}\n{fence}"
