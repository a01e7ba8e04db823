"""A report in the order in which it is read: tables and pictures under their headings."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gemcut.eval.comparison import Comparison, Report
from gemcut.eval.report import facts, frontier, pictures, recipe, tables
from gemcut.eval.report.grid import Grid
from gemcut.eval.report.plots import Plot
from gemcut.eval.report.words import diagnosed

_MOST_COLUMNS = 5  # rank of the main table's columns that a page has room for


@dataclass(frozen=True)
class Section:
    """A heading and what is under it.

    text: paragraphs; commands: as a shell takes them; short: whether files' names may be.
    """

    title: str
    grids: tuple[Grid, ...] = ()
    plots: tuple[Plot, ...] = ()
    text: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    short: bool = True


def sections(report: Report) -> list[Section]:
    """All that have something in them."""
    found = [*_of_comparisons(report), *_of_files(report), _measured(report)]
    return [each for each in found if each.grids or each.plots or each.text]


def gallery(report: Report) -> list[Plot]:
    """All pictures."""
    return [plot for section in sections(report) for plot in section.plots]


def _of_comparisons(report: Report) -> Iterator[Section]:
    several = len(report.comparisons) > 1
    for number, comparison in enumerate(report.comparisons):
        suffix = f"-{number + 1}" if number else ""
        where = f", context {comparison.protocol.n_ctx:,}" if several else ""
        for section in _of_comparison(report, comparison, suffix):
            yield replace(section, title=section.title + where)


def _of_comparison(report: Report, comparison: Comparison, suffix: str) -> Iterator[Section]:
    yield Section(
        "What each file lost",
        (tables.main(comparison).up_to(_MOST_COLUMNS),),
        tuple(frontier.frontiers(report, comparison, suffix)),
        comparison.notes,
    )
    yield Section("Token by token", plots=tuple(pictures.distributions(comparison, suffix)))
    yield Section(
        "Kinds of text",
        _known(tables.domains(comparison)),
        tuple(pictures.domains(comparison, suffix)),
    )
    yield Section(
        "Routing",
        _known(tables.routing(comparison)),
        tuple(pictures.routers(comparison, suffix)),
    )
    yield Section(
        "KV cache",
        _known(tables.effects(comparison)),
        tuple(pictures.caches(comparison, suffix)),
    )


def _of_files(report: Report) -> Iterator[Section]:
    yield Section("Tasks", tuple(map(tables.tasks, report.tasks)))
    yield Section("Speed and memory", _known(tables.speeds(report)))
    yield Section(
        "What was predicted",
        _known(tables.predictions(report)),
        tuple(frontier.predicted(report)),
    )
    yield Section("Types", _known(tables.types(report)), tuple(recipe.recipes(report)))


def _measured(report: Report) -> Section:
    protocols = map(facts.protocol, report.comparisons)
    grids = (*protocols, facts.texts(report), facts.files(report), *_known(facts.said(report)))
    diagnosis = (diagnosed(report.diagnosis),) if report.diagnosis else ()
    commands = tuple(facts.commands(report))
    text = (*diagnosis, *report.notes)
    return Section("How it was measured", grids, (), text, commands, short=False)


def _known(*grids: Grid | None) -> tuple[Grid, ...]:
    return tuple(grid for grid in grids if grid is not None)
