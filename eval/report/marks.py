"""Parts of pictures: quiet axes, intervals, and labels that stand clear of each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from gemcut.errors import printable
from gemcut.eval.report.plots import FAINT, INK, LINE
from gemcut.eval.statistics.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Box = tuple[float, float, float, float]  # left, bottom, right, top in points
Point = tuple[float, float]

_SIZE = 9.0  # points, of names
_LONGEST = 26  # characters of a label
_EM, _HEIGHT = 0.6, 1.25  # of a letter, in font sizes
# Where a label may stand beside its point, the best place first: steps to the right and up.
_PLACES = ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 0), (-1, 1), (-1, -1))
_REACH = (1.0, 2.2)


def label(text: str) -> str:
    """A name with what there is room for."""
    text = printable(text)
    half = (_LONGEST - 1) // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}…{text[-half:]}"


def quiet(axes: "Axes", grid: str = "") -> None:
    """Faint lines across one axis ("x", "y") or none, behind everything."""
    axes.set_axisbelow(True)
    axes.tick_params(length=2.5, which="major")
    axes.tick_params(length=0, which="minor")
    if grid in ("x", "y"):
        axes.grid(axis=grid, color=LINE, linewidth=0.6)  # type: ignore[arg-type]  # looked at


def decades(axis: "Axis") -> None:
    """A logarithmic axis with plain numbers, not too many of them."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    steps = (1.0, 2.0, 5.0) if high < 150 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=7))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def lengths(estimate: Estimate, positive: bool) -> tuple[list[float], list[float]]:
    """How far an interval reaches below and above; on a logarithmic axis it stays positive."""
    low = max(estimate.low, estimate.value / 10) if positive else estimate.low
    return [max(0.0, estimate.value - low)], [max(0.0, estimate.high - estimate.value)]


def wide(values: Sequence[float]) -> bool:
    """Whether values are so far apart that only a logarithmic axis shows all of them."""
    positive = [value for value in values if value > 0]
    return len(positive) == len(values) > 1 and max(positive) > 6 * min(positive)


def name_points(
    axes: "Axes", names: Mapping[Point, str], lines: Sequence[tuple[Point, Point]] = ()
) -> None:
    """Write names beside points, clear of each other, of points and of upright or level lines."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # axes of a figure
    scale = 72 / axes.figure.dpi

    def placed(point: Point) -> Point:
        x, y = axes.transData.transform(point)
        return float(x) * scale, float(y) * scale

    frame = axes.get_window_extent()
    bounds = tuple(float(v) * scale for v in (frame.x0, frame.y0, frame.x1, frame.y1))
    taken = [_around(placed(point), placed(point), 4.0) for point in names]
    taken += [_around(placed(start), placed(end), 1.0) for start, end in lines]
    for point, name in names.items():
        text, (x, y) = label(name), placed(point)
        places = list(_places(len(text) * _SIZE * _EM, _SIZE * _HEIGHT))
        boxes = [_moved(place.box, x, y) for place in places]
        best = min(range(len(places)), key=lambda i: _trouble(boxes[i], taken, bounds))
        taken.append(boxes[best])
        axes.annotate(
            text,
            point,
            xytext=places[best].offset,
            textcoords="offset points",
            ha=places[best].side,
            va="center",
            fontsize=_SIZE,
            color=INK,
        )


def name_ends(
    axes: "Axes", ends: Sequence[Point], names: Sequence[str], colours: Sequence[str]
) -> None:
    """Write names to the right of lines' ends, moved up and down until they are clear."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # axes of a figure
    scale = 72 / axes.figure.dpi
    heights = [float(axes.transData.transform(end)[1]) * scale for end in ends]
    for i, moved in enumerate(spread(heights, 9.5)):
        axes.annotate(
            label(names[i]),
            ends[i],
            xytext=(7, moved - heights[i]),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=8,
            color=INK,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colours[i],
                "linewidth": 1.2,
                "shrinkA": 0,
                "shrinkB": 1,
            },
        )


def spread(values: Sequence[float], gap: float) -> list[float]:
    """The values, moved as little as keeps them `gap` apart, in the same order."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[list[int]] = []
    for i in order:
        groups.append([i])
        while len(groups) > 1 and _low(groups[-1], values, gap) < _high(groups[-2], values, gap):
            groups[-2:] = [groups[-2] + groups[-1]]
    found = list(values)
    for group in groups:
        for step, i in enumerate(group):
            found[i] = _low(group, values, gap) + step * gap
    return found


def _low(group: Sequence[int], values: Sequence[float], gap: float) -> float:
    return sum(values[i] for i in group) / len(group) - (len(group) - 1) / 2 * gap


def _high(group: Sequence[int], values: Sequence[float], gap: float) -> float:
    """Where the next one may be at the lowest."""
    return _low(group, values, gap) + len(group) * gap


@dataclass(frozen=True)
class _Place:
    """Where a text of some size may be: from its point to its anchor, and the box it then fills."""

    offset: Point
    side: Literal["left", "center", "right"]
    box: Box


def _places(width: float, height: float) -> Iterator[_Place]:
    for reach, (right, up) in product(_REACH, _PLACES):
        x = 5.5 * reach * right
        y = up * (4.5 * reach if right else height / 2 + 4.5 * reach)
        left = x - width * (1 - right) / 2
        side: Literal["left", "center", "right"] = ("center", "left", "right")[right]
        yield _Place((x, y), side, (left, y - height / 2, left + width, y + height / 2))


def _around(start: Point, end: Point, reach: float) -> Box:
    """The box of an upright or level line, or of a point."""
    (left, right), (bottom, top) = (sorted(pair) for pair in zip(start, end, strict=True))
    return left - reach, bottom - reach, right + reach, top + reach


def _moved(box: Box, x: float, y: float) -> Box:
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def _trouble(box: Box, taken: Sequence[Box], bounds: Sequence[float]) -> float:
    """How much of the box is hidden or outside: its own area at most counts for each."""
    outside = max(0.0, bounds[0] - box[0]) + max(0.0, box[2] - bounds[2])
    outside += max(0.0, bounds[1] - box[1]) + max(0.0, box[3] - bounds[3])
    return 30 * outside + sum(_overlap(box, other) for other in taken)


def _overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def muted(text: str) -> dict[str, Any]:
    """How remarks within a picture are written."""
    return {"s": text, "color": FAINT, "fontsize": 7.5}
