"""A picture of a file's types: roles down, blocks across, the more bits the darker."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from gemcut.eval.comparison import Anatomy, Report
from gemcut.eval.report.anatomy import Cell, bits, block_types
from gemcut.eval.report.plots import BITS, ON_DARK, ON_LIGHT, PAPER, WIDTH, Plot
from gemcut.eval.report.words import short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

_STEPS = (2.9, 3.3, 4.1, 4.4, 5.2, 6.3, 8, 12)  # bits per weight where the next colour begins
_DARK = 6  # the first colour that text is light on
_LETTER = 4.6  # points: of text on a run
_LEFT = 92  # points that names of roles take


def recipes(report: Report) -> Iterator[Plot]:
    """For every file whose tensors are known, which types it is made of, and where."""
    names = short_names([file.name for file in report.files])
    for number, file in enumerate(report.files):
        if cells := block_types(file):
            name = names[file.name]
            yield Plot(
                f"types-{number}",
                name,
                _caption(file),
                partial(_draw, cells),
                0.68 + 0.185 * len(cells),
            )


def colour(bits_per_weight: float) -> str:
    """From light for few bits to dark for many."""
    return BITS[sum(bits_per_weight >= step for step in _STEPS)]


def _caption(file: Anatomy) -> str:
    return "gemcut chose every tensor's type." if file.predicted is not None else ""


def _draw(cells: Mapping[str, Mapping[int, Cell]], figure: "Figure") -> None:
    axes = figure.subplots()
    n_blocks = 1 + max(layer for of_role in cells.values() for layer in of_role)
    width = max(n_blocks, 1)
    unit = (72 * WIDTH - _LEFT) / width  # points of a block
    for place, of_role in enumerate(reversed(list(cells.values()))):
        for start, stop, cell in _runs(of_role, width):
            _bar(axes, place, start, stop, cell, unit)
    axes.set_yticks(range(len(cells)), list(reversed(list(cells))), fontsize=8)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(-0.55, len(cells) - 0.45))
    axes.locator_params(axis="x", integer=True)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("block", fontsize=8)
    figure.legend(handles=_legend(cells), loc="outside lower left", ncols=7, fontsize=7)


def _legend(cells: Mapping[str, Mapping[int, Cell]]) -> list["Patch"]:
    """The types of a file, those of fewest bits first."""
    from matplotlib.patches import Patch

    kinds = {cell.type for of_role in cells.values() for cell in of_role.values()}
    ordered = sorted(kinds, key=lambda kind: (bits(kind), kind))
    return [Patch(facecolor=colour(bits(kind)), label=kind.upper()) for kind in ordered]


def _runs(cells: Mapping[int, Cell], width: int) -> Iterator[tuple[int, int, Cell]]:
    """Neighbours that are alike, as [start, stop); what is outside the blocks is as wide as all."""
    if -1 in cells and len(cells) == 1:
        yield 0, width, cells[-1]
        return
    start = None
    layers = sorted(layer for layer in cells if layer >= 0)
    for i, layer in enumerate(layers):
        start = layer if start is None else start
        following = layers[i + 1] if i + 1 < len(layers) else None
        if following != layer + 1 or cells[following] != cells[layer]:
            yield start, layer + 1, cells[layer]
            start = None


def _bar(axes: "Axes", place: int, start: int, stop: int, cell: Cell, unit: float) -> None:
    tone = colour(cell.bits)
    axes.barh(
        place,
        stop - start,
        left=start - 0.5,
        height=0.86,
        color=tone,
        edgecolor=PAPER,
        linewidth=0.5,
    )
    text = _text(cell, (stop - start) * unit)
    if text:
        light = BITS.index(tone) >= _DARK
        middle = (start + stop - 1) / 2
        ink = ON_DARK if light else ON_LIGHT
        axes.text(middle, place, text, ha="center", va="center_baseline", fontsize=6.8, color=ink)


def _text(cell: Cell, room: float) -> str:
    """The type, or what of it there is room for: "q4_k", "4", nothing."""
    whole = cell.type.upper() + ("+" if cell.mixed else "")
    short = f"{cell.bits:.1f}" if cell.mixed else f"{bits(cell.type):.3g}"
    options: Sequence[str] = (whole, short)
    return next((text for text in options if len(text) * _LETTER <= room), "")
