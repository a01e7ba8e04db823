"""Pictures of choice: quality against size, memory or speed; predicted against measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from gemcut.eval.comparison import Anatomy, Comparison, Report, Row
from gemcut.eval.report.marks import Point, decades, lengths, muted, name_points, quiet, wide
from gemcut.eval.report.plots import FAINT, PAPER, SERIES, Plot
from gemcut.eval.report.tables import plans, predicted_and_measured
from gemcut.eval.report.verdict import ranked
from gemcut.eval.report.words import short_names
from gemcut.eval.statistics.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, STOCK = SERIES[1], SERIES[0]
_FAR = 20  # times below every file: where the floor would only make room empty
_WIDTH = 4.2  # inches: three stand side by side


@dataclass(frozen=True)
class _Choice:
    """A file as a point. ours: gemcut chose its types."""

    name: str
    x: float
    kld: Estimate
    ours: bool


def frontiers(report: Report, comparison: Comparison, suffix: str = "") -> Iterator[Plot]:
    """Size, then memory and decode speed if measured, each against mean KL divergence."""
    anatomies, floor = {file.name: file for file in report.files}, _floor(comparison)
    axes: tuple[tuple[str, str, Callable[[Row, Anatomy | None], float | None], bool], ...] = (
        ("size", "size of the file, {}", lambda row, _: row.column.file.size, False),
        ("memory", "memory in use at most, all places, {}", lambda _, a: _memory(a), False),
        ("speed", "decode, tokens per second", lambda _, a: _decode(a), True),
    )
    for what, title, of, more_is_better in axes:
        points, unit = _scaled(_choices(report, comparison, anatomies, of), "{}" in title)
        if len(points) > 1:
            yield Plot(
                f"{what}-kld{suffix}",
                f"KL divergence against {what}",
                _caption(points) if what == "size" else "",
                partial(_draw, points, title.format(unit), more_is_better, floor),
                height=3.1,
                width=_WIDTH,
            )


def predicted(report: Report) -> Iterator[Plot]:
    """Mean KL divergence as plans predicted it, against what was measured."""
    pairs = predicted_and_measured(report)
    if len(pairs) > 1:
        caption = "On the line predictions came true; between the dotted ones within a factor of 2."
        title = "Predicted beside measured"
        yield Plot("predicted", title, caption, partial(_draw_predicted, pairs))


def _choices(
    report: Report,
    comparison: Comparison,
    anatomies: Mapping[str, Anatomy],
    of: Callable[[Row, Anatomy | None], float | None],
) -> list[_Choice]:
    rows, ours = ranked(comparison), plans(report)
    names = short_names([row.column.name for row in rows])
    found = []
    for row in rows:
        x = of(row, anatomies.get(row.column.file.name))
        if x is not None and row.summary and row.summary.kld and row.summary.kld.value > 0:
            mine = row.column.file.name in ours
            found.append(_Choice(names[row.column.name], x, row.summary.kld, mine))
    return found


def _scaled(points: list[_Choice], are_bytes: bool) -> tuple[list[_Choice], str]:
    """Bytes in a unit of a readable size."""
    largest = max((point.x for point in points), default=0)
    unit, scale = ("GB", 1e9) if largest >= 1e9 else ("MB", 1e6)
    return ([replace(p, x=p.x / scale) for p in points] if are_bytes else points), unit


def _draw(
    points: Sequence[_Choice], title: str, more: bool, floor: float | None, figure: "Figure"
) -> None:
    axes = figure.subplots()
    klds = [point.kld.value for point in points]
    if logarithmic := wide(klds):
        axes.set_yscale("log")
    if wide([point.x for point in points]):
        axes.set_xscale("log")
        decades(axes.xaxis)
    front = list(_draw_front(axes, points, more))
    for ours, colour, marker in ((False, STOCK, "o"), (True, OURS, "D")):
        for point in (p for p in points if p.ours == ours):
            axes.errorbar(
                point.x,
                point.kld.value,
                yerr=lengths(point.kld, logarithmic),
                fmt=marker,
                markersize=6 if ours else 5.5,
                color=colour,
                markerfacecolor=colour if ours else PAPER,
                markeredgewidth=1.3,
                elinewidth=1.1,
            )
    axes.margins(x=0.14, y=0.1)
    _draw_floor(axes, floor, min(klds), logarithmic)
    axes.set_xlabel(title)
    axes.set_ylabel("mean KL divergence, nats")
    if logarithmic:
        decades(axes.yaxis)
    quiet(axes, "y")
    bars = [((p.x, _least(p, logarithmic)), (p.x, p.kld.high)) for p in points]
    name_points(axes, {(p.x, p.kld.value): p.name for p in points}, [*bars, *front])


def _least(point: _Choice, logarithmic: bool) -> float:
    return point.kld.value - lengths(point.kld, logarithmic)[0][0]


def _draw_front(
    axes: "Axes", points: Sequence[_Choice], more: bool
) -> Iterator[tuple[Point, Point]]:
    """A line through the files that no other one beats in both; its pieces."""
    front: list[_Choice] = []
    for point in sorted(points, key=lambda p: (-p.x if more else p.x, p.kld.value)):
        if not front or point.kld.value < front[-1].kld.value:
            front.append(point)
    xs, ys = [p.x for p in front], [p.kld.value for p in front]
    axes.step(xs, ys, where="post", color=FAINT, linewidth=0.9, alpha=0.6, zorder=1)
    for a, b in pairwise(front):
        yield (a.x, a.kld.value), (b.x, a.kld.value)
        yield (b.x, a.kld.value), (b.x, b.kld.value)


def _draw_floor(axes: "Axes", floor: float | None, least: float, logarithmic: bool) -> None:
    if floor is None:
        return
    if floor * _FAR > least or not logarithmic:
        axes.axhline(floor, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
        place = axes.get_yaxis_transform()
        axes.text(0.99, floor, transform=place, ha="right", va="bottom", **muted("noise floor"))
    else:
        text = muted(f"noise floor {floor:.1g}, far below")
        axes.text(0.99, 0.015, transform=axes.transAxes, ha="right", va="bottom", **text)


def _caption(points: Sequence[_Choice]) -> str:
    kinds = {point.ours for point in points}
    marks = "Filled diamonds: types chosen one by one by gemcut; circles: others. " * (
        len(kinds) > 1
    )
    return f"{marks}Bars: 95 % intervals. On the line: files that no other one beats in both."


def _draw_predicted(pairs: Sequence[tuple[str, float, Estimate]], figure: "Figure") -> None:
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    values = [v for _, told, found in pairs for v in (told, found.value)]
    ends = min(values) / 2, max(values) * 2
    for factor, style in ((1, "-"), (2, ":"), (0.5, ":")):
        axes.plot(ends, [factor * v for v in ends], color=FAINT, linewidth=0.9, linestyle=style)
    names = short_names([name for name, _, _ in pairs])
    for _, told, found in pairs:
        axes.errorbar(
            told, found.value, yerr=lengths(found, True), fmt="D", color=OURS, markersize=5.5
        )
    axes.set(xlim=ends, ylim=ends, xlabel="predicted mean KL divergence", ylabel="measured")
    quiet(axes)
    decades(axes.xaxis)
    decades(axes.yaxis)
    bars = [((told, found.low), (told, found.high)) for _, told, found in pairs]
    name_points(axes, {(told, found.value): names[n] for n, told, found in pairs}, bars)


def _floor(comparison: Comparison) -> float | None:
    row = comparison.floor
    return row.summary.kld.value if row and row.summary and row.summary.kld else None


def _memory(anatomy: Anatomy | None) -> float | None:
    return sum(anatomy.memory.values()) if anatomy and anatomy.memory else None


def _decode(anatomy: Anatomy | None) -> float | None:
    return anatomy.speed.decode if anatomy and anatomy.speed and anatomy.speed.decode else None
