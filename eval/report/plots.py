"""Pictures of a report as SVG and PNG, drawn by matplotlib, which is an extra of its own.

A picture is described first (`Plot`) and drawn when somebody wants it. Its colours are few and
known, so that a page can put variables in their place and follow the reader's light or dark theme.
Equal reports make equal bytes: no dates, no random ids.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INSTALL = "pip install 'gemcut[plot]'"
WIDTH = 4.8  # inches: so that text can still be read where a phone shows the whole picture

INK, FAINT, LINE, PAPER = "#1c1f22", "#6a7178", "#dcdfde", "#ffffff"
# Told apart by people who do not see some colours (Okabe and Ito, "Color universal design", 2008).
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6a00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# From few bits per weight to many: light to dark (ColorBrewer's YlGnBu, safe for all eyes).
BITS = (
    "#ffffd8",
    "#edf8b0",
    "#c7e9b3",
    "#7fcdba",
    "#41b6c3",
    "#1d91bf",
    "#225ea7",
    "#253493",
    "#081d57",
)
ON_LIGHT, ON_DARK = "#10242b", "#f4fbfa"  # text on those

_VARIABLES: Mapping[str, str] = {
    INK: "ink",
    FAINT: "faint",
    LINE: "line",
    PAPER: "paper",
    ON_LIGHT: "on-few",
    ON_DARK: "on-many",
    **{colour: f"series-{i}" for i, colour in enumerate(SERIES)},
    **{colour: f"bits-{i}" for i, colour in enumerate(BITS)},
}
_STYLE = {
    "text.parse_math": False,  # a $ in a file's name is a $
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: widths are alike everywhere
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
}

_HEAD = re.compile(r"<\?xml.*?\?>\s*|<!DOCTYPE.*?>\s*|<defs>\s*<style.*?</defs>\s*", re.DOTALL)
_IDS = re.compile(r' id="[\w.]+_\d+"')
_SIZE = re.compile(r'<svg xmlns:xlink="[^"]*" width="[^"]*" height="[^"]*"')
_COLOUR = re.compile(r"((?:fill|stroke): )(#[0-9a-f]{6})")


@dataclass(frozen=True)
class Plot:
    """A picture to be drawn. name: of its file."""

    name: str
    title: str
    caption: str
    draw: Callable[["Figure"], None]
    height: float = 3.1  # inches
    width: float = WIDTH


def available() -> bool:
    """Whether matplotlib is there, and works."""
    try:
        import_module("matplotlib")
    except ImportError:
        return False
    return True


def svg(plot: Plot) -> str:
    """A whole SVG file."""
    return _rendered(plot, "svg").decode("utf-8")


def png(plot: Plot) -> bytes:
    """A PNG, large enough for print."""
    return _rendered(plot, "png")


def inline(plot: Plot) -> str:
    """The SVG as an element of a page, in colours of the page's theme (`--ink` and so on).

    Whatever a file is called stands in it escaped, as matplotlib wrote it.
    """
    element = _HEAD.sub("", svg(plot))
    element = _IDS.sub("", element)  # numbers that begin anew in every picture, and nothing uses
    labelled = f'<svg role="img" aria-label="{escape(plot.title)}"'
    element = _SIZE.sub(lambda _: labelled, element, count=1)  # a backslash in a name is itself
    return _COLOUR.sub(_themed, element)


def _themed(found: re.Match[str]) -> str:
    variable = _VARIABLES.get(found[2])
    return f"{found[1]}var(--{variable})" if variable else found[0]


def _rendered(plot: Plot, kind: str) -> bytes:
    from matplotlib.figure import Figure

    target = BytesIO()
    with _styled(plot.name):
        figure = Figure(figsize=(plot.width, plot.height), layout="constrained")
        plot.draw(figure)
        known = {"Date": None, "Creator": None, "Format": None, "Type": None}
        metadata = known if kind == "svg" else {"Software": None}
        figure.savefig(target, format=kind, dpi=220, metadata=metadata)
    return target.getvalue()


@contextmanager
def _styled(name: str) -> Iterator[None]:
    from matplotlib import rc_context

    style: Any = _STYLE | {"svg.hashsalt": name}
    with warnings.catch_warnings(), rc_context(style):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of names in any script
        yield
