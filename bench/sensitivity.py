"""Does the sensitivity predict what whole files lose?

    PYTHONPATH=. python bench/sensitivity.py

Reads what bench/quality.py has measured of the files of many recipes and sizes, none of them on the
text of the probes, and holds the predictions beside it: rank correlation, and how far a prediction
is off after one rescale per model. A picture goes to build/bench.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import FOLDER, Cell, Table, record
from numpy.typing import NDArray
from quality import RESULT

Doubles = NDArray[np.float64]
CLAIM = (
    "What `gemcut measure --probe` predicts of a whole file, in whatever types, is what the file "
    "loses on text that it was not measured on."
)
COLUMNS = ("model", "text", "files", "rank correlation", "after one fit", "largest factor off")


@dataclass(frozen=True)
class Cut:
    """A file: how it was chosen, and what was predicted and measured of it."""

    recipe: str
    mixture: str  # whose size it has
    size: int  # bytes of its tensors
    predicted: float
    measured: float
    se: float


@dataclass(frozen=True)
class Fit:
    """Predictions held against measurements, after one rescale: floor + scale x predicted."""

    spearman: float
    floor: float
    scale: float
    factor: float  # the largest ratio, either way, of a measurement to its rescaled prediction

    @classmethod
    def of(cls, predicted: Doubles, measured: Doubles) -> "Fit":
        """The rescale of least relative squares."""
        columns = np.stack([np.ones_like(predicted), predicted], axis=1) / measured[:, None]
        floor, scale = np.linalg.lstsq(columns, np.ones_like(measured), rcond=None)[0]
        first, second = (np.argsort(np.argsort(each)) * 1.0 for each in (predicted, measured))
        ratio = np.abs(np.log(measured / (floor + scale * predicted)))
        spearman = np.corrcoef(first, second)[0, 1]
        return cls(float(spearman), float(floor), float(scale), float(np.exp(ratio.max())))

    def __call__(self, predicted: float) -> float:
        return self.floor + self.scale * predicted


def main() -> None:
    if not RESULT.exists():
        raise SystemExit(f"no {RESULT}: run bench/quality.py first")
    found: list[dict[str, Any]] = json.loads(RESULT.read_text())
    rows: list[list[Cell]] = []
    for result in found:
        cuts = files(result)
        predicted = np.array([cut.predicted for cut in cuts])
        fit = Fit.of(predicted, np.array([cut.measured for cut in cuts]))
        title = f"{result['model']}, {result['text']}, measured on {result['measured_on']}"
        report(title, cuts, fit)
        fitted = fit.spearman, f"{fit.floor:.2g} + {fit.scale:.2f} x predicted", fit.factor
        rows.append([result["model"], result["text"], len(cuts), *fitted])
        draw(f"sensitivity-{title.replace(', ', '-')}", cuts, fit)
    record("sensitivity", CLAIM, [Table("", COLUMNS, rows)], when=RESULT.stat().st_mtime)


def files(result: Mapping[str, Any]) -> list[Cut]:
    """The files of one model, with what they lose on one text."""
    return [
        Cut(recipe, mixture, one["tensor_bytes"], one["predicted"], one["kld"], one["se"])
        for mixture, by_recipe in result["files"].items()
        for recipe, one in by_recipe.items()
    ]


def report(title: str, cuts: Sequence[Cut], fit: Fit) -> None:
    """Print the predictions beside the measurements."""
    print(f"\n{title}")
    print(f"{'file':24} {'bytes':>9} {'predicted':>9} {'rescaled':>9} {'measured':>9} {'+/-':>8}")
    for cut in sorted(cuts, key=lambda cut: cut.measured):
        name = f"{cut.mixture} {cut.recipe}"
        print(
            f"{name:24} {cut.size:9} {cut.predicted:9.6f} {fit(cut.predicted):9.6f} "
            f"{cut.measured:9.6f} {cut.se:8.6f}"
        )
    print(
        f"rank correlation {fit.spearman:.4f} over {len(cuts)} files; measured = "
        f"{fit.floor:.6f} + {fit.scale:.3g} x predicted within a factor of {fit.factor:.2f}"
    )


def draw(name: str, cuts: Sequence[Cut], fit: Fit) -> None:
    """The measured divergence over the predicted one, and over size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for recipe in dict.fromkeys(cut.recipe for cut in cuts):
        some = [cut for cut in cuts if cut.recipe == recipe]
        measured = [cut.measured for cut in some]
        predicted = [fit(cut.predicted) for cut in some]
        left.errorbar(predicted, measured, [cut.se for cut in some], fmt="o", label=recipe)
        right.plot([cut.size / 1e6 for cut in some], measured, "o-", label=recipe)
    ends = [min(cut.measured for cut in cuts), max(cut.measured for cut in cuts)]
    left.plot(ends, ends, color="grey")
    left.set(xscale="log", yscale="log", xlabel="predicted, rescaled", ylabel="KL divergence")
    right.set(yscale="log", xlabel="tensors (MB)", ylabel="KL divergence")
    left.legend()
    right.legend()
    figure.savefig(FOLDER / f"{name.replace(' ', '-')}.png", dpi=150)


if __name__ == "__main__":
    main()
