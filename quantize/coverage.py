"""Coverage: how often each expert was reached by the text that statistics were collected from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemcut import ggml
from gemcut.errors import OutputError, UsageError
from gemcut.quantize.statistics import Entry, Statistics
from gemcut.roles import role_of

_DPI = 120
_SPREAD = 16.0  # colours reach from 1/16 to 16 times an equal share


@dataclass(frozen=True, eq=False)
class LayerCoverage:
    """The experts of one block. counts: float32 [experts], rows that each of them was given.

    gates: float32 [experts], sums of the weights that the router gave to these rows, if known.
    """

    layer: int
    tensor: str  # whose statistics say it
    counts: ggml.Floats
    gates: ggml.Floats | None

    @property
    def experts(self) -> int:
        """How many there are."""
        return len(self.counts)

    @property
    def rows(self) -> int:
        """Rows over all experts: tokens times experts used at once."""
        return round(float(self.counts.sum(dtype=np.float64)))

    @property
    def reached(self) -> int:
        """Experts that were given a row at all."""
        return int((self.counts > 0).sum())

    @property
    def load(self) -> ggml.Floats:
        """Each expert's rows in units of an equal share; 1 everywhere if none is preferred."""
        return self.counts * np.float32(self.experts / max(self.rows, 1))

    @property
    def busiest(self) -> float:
        """The share of the rows that the busiest quarter of the experts was given."""
        quarter = np.sort(self.counts)[-max(1, round(self.experts / 4)) :]
        return float(quarter.sum(dtype=np.float64)) / max(self.rows, 1)

    @property
    def effective(self) -> float:
        """How many equally used experts would be as varied: the exponential of the entropy."""
        share = self.counts[self.counts > 0] / max(self.rows, 1)
        return float(np.exp(-(share * np.log(share)).sum()))


def coverage(statistics: Statistics) -> tuple[LayerCoverage, ...]:
    """The blocks with experts, in order; nothing of files that do not count per expert."""
    found: dict[int, LayerCoverage] = {}
    for name, entry in sorted(statistics.entries.items()):
        role = role_of(name)
        if role.layer is not None and role.is_expert and _counted(entry):
            found.setdefault(role.layer, LayerCoverage(role.layer, name, entry.counts, entry.gates))
    return tuple(found[layer] for layer in sorted(found))


def _counted(entry: Entry) -> bool:
    return len(entry.counts) > 1 and bool(entry.counts.any())


def to_dict(layers: Iterable[LayerCoverage]) -> list[dict[str, Any]]:
    """Coverage as plain data: for every block its numbers, and rows and gates per expert."""
    return [
        {
            "layer": each.layer,
            "tensor": each.tensor,
            "experts": each.experts,
            "rows": each.rows,
            "reached": each.reached,
            "effective": each.effective,
            "busiest_quarter": each.busiest,
            "least": int(each.counts.min()),
            "median": float(np.median(each.counts)),
            "most": int(each.counts.max()),
            "counts": [int(count) for count in each.counts],
            "gates": None if each.gates is None else [float(gate) for gate in each.gates],
        }
        for each in layers
    ]


def require_plotting() -> None:
    """Raise UsageError if matplotlib is missing: before hours of work, not after them."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"a picture needs matplotlib ({error}): pip install gemcut[plot]"
        ) from error


def draw(layers: Sequence[LayerCoverage], path: Path) -> None:
    """Draw the load of every expert in every block as a heat map, in a PNG.

    Raises:
        UsageError: matplotlib is missing, or there is nothing to draw.
        OutputError: the file cannot be written.
    """
    if not layers:
        raise UsageError("no expert was counted: there is nothing to draw")
    require_plotting()
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    load = np.full((len(layers), max(each.experts for each in layers)), np.nan)
    for row, each in enumerate(layers):
        load[row, : each.experts] = np.where(each.counts > 0, each.load, np.nan)
    rows, columns = load.shape
    figure = Figure(figsize=(min(6 + columns / 16, 24), min(2 + rows / 5, 20)))
    axes = figure.add_subplot(facecolor="black")
    scale = LogNorm(1 / _SPREAD, _SPREAD)
    image = axes.imshow(load, aspect="auto", interpolation="nearest", norm=scale, cmap="coolwarm")
    axes.set_yticks(range(rows), [str(each.layer) for each in layers])
    axes.set(xlabel="expert", ylabel="block", title="Rows per expert; black: none")
    figure.colorbar(image, ax=axes, label="times an equal share")
    try:
        figure.savefig(path, dpi=_DPI, format="png", bbox_inches="tight")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
