"""A report as one page of HTML that needs nothing else: no script, no network, no other file.

Every text is escaped by the template; pictures are SVG as matplotlib wrote it, whose texts are
escaped, too; and the page's policy lets nothing be loaded or run, should both fail.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import log10

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from gemcut import __version__
from gemcut.errors import printable
from gemcut.eval.comparison import Comparison, Report
from gemcut.eval.report import plots, tables
from gemcut.eval.report.facts import model_name
from gemcut.eval.report.marks import wide
from gemcut.eval.report.sections import Section, sections
from gemcut.eval.report.tables import plans
from gemcut.eval.report.verdict import verdict
from gemcut.eval.report.words import diagnosed, short_names
from gemcut.eval.scoring.column import FLOOR
from gemcut.eval.statistics.intervals import Estimate


@dataclass(frozen=True)
class Whisker:
    """An interval on a scale that all rows of a table share: its ends and value, in percent."""

    low: float
    value: float
    high: float


def page(report: Report) -> str:
    """The text of the page. Without matplotlib it has tables only, and says how to get pictures."""
    drawn = plots.available()
    found = sections(report)
    text = _template().render(
        title=_title(report),
        answer=verdict(report.comparisons[0]) if report.comparisons else [],
        warning=_warning(report),
        sections=found,
        pictures=_drawn(found) if drawn else {},
        install=None if drawn else plots.INSTALL,
        whiskers=_whiskers(report),
        names=_Names(report),
        style=Markup(_resource("page.css")),
        version=__version__,
        printable=printable,
    )
    return text.rstrip() + "\n"


class _Names:
    """How files are called in tables."""

    def __init__(self, report: Report) -> None:
        rows = [row for comparison in report.comparisons for row in comparison.rows]
        self._short = short_names(list(dict.fromkeys(row.column.name for row in rows)))
        self._ours = plans(report)

    def short(self, name: str) -> str:
        """What tells it apart; what is no file's name stays."""
        return self._short.get(name, name)

    def ours(self, name: str) -> bool:
        """Whether gemcut chose this file's types one by one."""
        return any(name == mine or name.startswith(f"{mine} (KV ") for mine in self._ours)


def _title(report: Report) -> str:
    name = model_name(report)
    return f"What the cut cost: {name}" if name else "What the cut cost"


def _warning(report: Report) -> str:
    diagnosis = report.diagnosis
    return diagnosed(diagnosis) if diagnosis and diagnosis.meaningless else ""


def _drawn(found: Sequence[Section]) -> dict[str, Markup]:
    return {plot.name: Markup(plots.inline(plot)) for each in found for plot in each.plots}


def _whiskers(report: Report) -> dict[str, Mapping[str, Whisker]]:
    """For every main table, by its title, the intervals of its rows."""
    return {tables.main(each).title: _of_rows(each) for each in report.comparisons}


def _of_rows(comparison: Comparison) -> dict[str, Whisker]:
    klds = {
        row.column.name: row.summary.kld
        for row in comparison.rows
        if row.column.role != FLOOR and row.summary and row.summary.kld
        if row.summary.kld.value > 0
    }
    values = [kld.value for kld in klds.values()]
    if len(values) < 2:
        return {}
    logarithmic = wide(values)
    ends = [_place(end, logarithmic) for kld in klds.values() for end in _ends(kld, logarithmic)]
    low, width = min(ends), max(ends) - min(ends) or 1.0
    return {
        name: Whisker(
            *(100 * (_place(end, logarithmic) - low) / width for end in _ends(kld, logarithmic))
        )
        for name, kld in klds.items()
    }


def _ends(kld: Estimate, logarithmic: bool) -> tuple[float, float, float]:
    least = kld.value / 10 if logarithmic else 0.0
    return max(kld.low, least), kld.value, kld.high


def _place(value: float, logarithmic: bool) -> float:
    return log10(value) if logarithmic else value


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_resource("page.html"))


def _resource(name: str) -> str:
    return resources.files("gemcut.eval.report").joinpath(name).read_text("utf-8")
