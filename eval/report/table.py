"""A report on a terminal: tables that leave out what there is no room for, and sentences."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gemcut.errors import printable
from gemcut.eval.comparison import Comparison, Report
from gemcut.eval.report import tables
from gemcut.eval.report.grid import Grid
from gemcut.eval.report.verdict import verdict
from gemcut.eval.report.words import diagnosed, short_names

_GAP = 2  # between columns
_NOT_COMPARED = ("reference", "floor")


class Fitted:
    """A grid, as wide as the terminal allows: first names get short, then columns go."""

    def __init__(self, grid: Grid) -> None:
        self.grid = _printable(grid)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text | Table]:
        """For rich: a title, the table, its notes."""
        fitted = fit(self.grid, options.max_width)
        yield Text(fitted.title, style="bold")
        yield _table(fitted)
        if notes := " ".join(filter(None, (*fitted.notes, fitted.legend))):
            yield Text(notes, style="dim")


def table(comparison: Comparison, by_domain: bool = False) -> RenderableType:
    """What was measured of every file, then as far as it was: routing, caches, domains."""
    found = [tables.main(comparison), tables.routing(comparison), tables.effects(comparison)]
    if by_domain:
        found.append(tables.domains(comparison))
    return _stacked(found)


def show(report: Report, by_domain: bool = False) -> RenderableType:
    """The whole report: the answer in sentences, then every table."""
    parts: list[RenderableType] = []
    if report.diagnosis is not None and report.diagnosis.meaningless:
        parts += [Text(printable(diagnosed(report.diagnosis)), style="bold red"), Text()]
    for comparison in report.comparisons:
        said = _sentences((*verdict(comparison), *_noted(comparison.notes)))
        parts += [table(comparison, by_domain), said, Text()]
    rest = [*map(tables.tasks, report.tasks), tables.speeds(report), tables.predictions(report)]
    return Group(*parts, _stacked(rest), _sentences(_noted(report.notes)))


def fit(grid: Grid, width: int) -> Grid:
    """The grid without the columns that do not fit, names shortened only if they have to be."""
    short = grid.renamed(short_names([row[0] for row in grid.rows if row[0] not in _NOT_COMPARED]))
    ranks = sorted({heading.rank for heading in grid.headings}, reverse=True)
    rank = next((r for r in ranks if _width(short.up_to(r)) <= width), ranks[-1])
    whole = grid.up_to(rank)
    return whole if _width(whole) <= width else short.up_to(rank)


def _width(grid: Grid) -> int:
    columns = zip(*([h.title for h in grid.headings], *grid.rows), strict=True)
    return sum(max(map(cell_len, column)) + _GAP for column in columns)


def _table(grid: Grid) -> Table:
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for i, heading in enumerate(grid.headings):
        side = "right" if heading.right else "left"
        # Names may be broken, as a last resort; numbers never are.
        found.add_column(heading.title, justify=side, no_wrap=i > 0, overflow="fold")  # type: ignore[arg-type]
    for row in grid.rows:
        plain = row[0] in _NOT_COMPARED or "reference" in row
        found.add_row(*map(Text, row), style="dim" if plain else "")
    return found


def _stacked(grids: Iterable[Grid | None]) -> Group:
    shown = [Fitted(grid) for grid in grids if grid is not None]
    return Group(*(part for each in shown for part in (each, Text())))


def _noted(notes: Sequence[str]) -> Iterator[str]:
    return (f"Note: {note.rstrip('.')}." for note in notes)


def _sentences(found: Iterable[str]) -> Group:
    return Group(*(Text(printable(sentence)) for sentence in found))


def _printable(grid: Grid) -> Grid:
    """Whatever names of foreign files hold, a terminal is not to obey it."""
    rows = tuple(tuple(map(printable, row)) for row in grid.rows)
    names = tuple(replace(h, title=printable(h.title)) for h in grid.headings)
    return Grid(printable(grid.title), names, rows, tuple(map(printable, grid.notes)))
