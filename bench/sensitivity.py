"""Does the sensitivity predict what whole files lose, and are the files chosen by it better?

    PYTHONPATH=. python bench/sensitivity.py [--chunks 40] [--probe-chunks 16] [--minutes M]

On the demo's model: importance, local errors and group weights are measured on calibration text,
files of many sizes are cut and their KL divergence against BF16 is measured on text that neither
the training nor the measurements have seen. Files are llama.cpp's mixtures, and for each of their
sizes the best choice by measured weights and by priors. Printed are predictions beside
measurements, and what the choice is worth at equal bytes; a picture and JSON go to build/bench.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from common import CHECKPOINT, FOLDER, demo_file
from numpy.typing import NDArray

from gemcut import api, ggml
from gemcut.convert.model import Model
from gemcut.demo.text import held_out_text
from gemcut.eval.compare import compare
from gemcut.eval.texts import Text
from gemcut.plan import Entry, Plan
from gemcut.quantize.calibration import calibration_text
from gemcut.quantize.importance import Importance
from gemcut.quantize.probe import Sample, open_probe
from gemcut.quantize.reweigh import probe_sensitivity
from gemcut.sensitivity import Sensitivity

HEADLINE = ("q3_k_m", "iq4_xs", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k")
MIXTURES = ("iq3_xxs", *HEADLINE)
OUTPUT = FOLDER / "sensitivity"

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Cut:
    """A file: how it was chosen, what was predicted of it, and what was measured."""

    name: str
    size: int  # bytes of its tensors
    predicted: float  # by measured weights
    believed: float  # by priors
    measured: float = 0.0
    se: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--chunks", type=int, default=40, help="of held-out text")
    parser.add_argument("--probe-chunks", type=int, default=16)
    parser.add_argument("--minutes", type=float, help="for probing; none: every tensor is probed")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    model = api.open_source(CHECKPOINT)
    priors, importance = measured_errors(model, arguments.threads)
    weighed = measured_weights(model, priors, importance, arguments)
    plans = all_plans(model, weighed, priors, importance)
    paths = write(model, plans, importance, arguments.threads)
    cuts = [
        Cut(name, plan.size, weighed.predict(types_of(plan))[0], priors.predict(types_of(plan))[0])
        for name, plan in plans.items()
    ]
    cuts = score(cuts, paths, arguments.chunks, arguments.threads)
    report(cuts)


def measured_errors(model: Model, threads: int) -> tuple[Sensitivity, Importance]:
    """The local errors, with priors for weights; and the importance they were measured with."""
    imatrix = OUTPUT / "imatrix.gguf"
    if not imatrix.exists():
        api.collect_importance(demo_file("bf16"), [], imatrix, chunks=100, threads=threads)
    importance = api.load_importance(imatrix, model)
    assert importance is not None
    found = OUTPUT / "errors.json"
    if found.exists():
        return Sensitivity.read(found), importance
    return api.measure_sensitivity(model, found, imatrix, threads=threads), importance


def measured_weights(
    model: Model, priors: Sensitivity, importance: Importance, arguments: argparse.Namespace
) -> Sensitivity:
    """The sensitivity with weights measured on the Q8_0 file, on text of its own."""
    found = OUTPUT / f"weights-{arguments.probe_chunks}-{arguments.minutes}.json"
    if found.exists():
        return Sensitivity.read(found)
    sample = Sample(512, arguments.probe_chunks)
    text = calibration_text(seed=2)  # another than the importance was collected on
    with open_probe(
        demo_file("q8_0"), text, model, importance, sample, threads=arguments.threads
    ) as probe:
        weighed = probe_sensitivity(priors, probe, arguments.minutes, tell=print)
    weighed.write(found)
    return weighed


def all_plans(
    model: Model, weighed: Sensitivity, priors: Sensitivity, importance: Importance
) -> dict[str, Plan]:
    """The mixtures, and for each of their sizes the best choices."""
    plans = {}
    for name in MIXTURES:
        stock = plans[name] = api.make_plan(model, api.Target(name), importance)
        for kind, sensitivity in (("measured", weighed), ("priors", priors)):
            plans[f"{name} size, by {kind}"] = solve(model, sensitivity, stock)
    return plans


def types_of(plan: Plan) -> dict[str, str]:
    return {name: entry.type for name, entry in plan.tensors.items()}


def solve(model: Model, sensitivity: Sensitivity, stock: Plan) -> Plan:
    """The types of least predicted loss in no more bytes than the mixture takes.

    The Lagrangian optimum by bisection of the price of a byte; then what is left over is filled
    with the steps that save most per byte.
    """
    tensors = {t.name: t for t in model.tensors if t.name in sensitivity.tensors}
    names = sorted(tensors)
    fixed = sum(_bytes(model, n, e.type) for n, e in stock.tensors.items() if n not in tensors)
    options = {name: _options(model, sensitivity, name) for name in names}

    def choose(price: float) -> dict[str, int]:
        costs = {n: [cost + price * size for _, size, cost in o] for n, o in options.items()}
        return {name: found.index(min(found)) for name, found in costs.items()}

    def size(chosen: Mapping[str, int]) -> int:
        return fixed + sum(options[name][index][1] for name, index in chosen.items())

    low, high = 1e-20, 1e6
    for _ in range(100):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if size(choose(middle)) <= stock.size else (middle, high)
    chosen = choose(high)
    while True:
        steps = [
            ((options[n][k][2] - o[2]) / (o[1] - options[n][k][1]), n, i)
            for n, k in chosen.items()
            for i, o in enumerate(options[n])
            if 0 < o[1] - options[n][k][1] <= stock.size - size(chosen)
        ]
        if not steps or (best := max(steps))[0] <= 0:
            break
        chosen[best[1]] = best[2]
    types = {name: Entry(options[name][index][0]) for name, index in chosen.items()}
    plan = replace(stock, tensors={**stock.tensors, **types}, request={}, solver={"name": "bench"})
    return api.make_plan(model, api.Target(plan=plan))


def _options(model: Model, sensitivity: Sensitivity, name: str) -> list[tuple[str, int, float]]:
    """Types of a tensor with bytes and cost; padded rows are not written."""
    tensor = sensitivity.tensors[name]
    weight = sensitivity.groups[tensor.group].weight
    return [
        (candidate, _bytes(model, name, candidate), weight * error.mean)
        for candidate, error in tensor.errors.items()
        if "@" not in candidate
    ]


def _bytes(model: Model, name: str, kind: str) -> int:
    tensor = next(each for each in model.tensors if each.name == name)
    return tensor.rows * ggml.type_named(kind).row_bytes(tensor.columns)


def write(
    model: Model, plans: Mapping[str, Plan], importance: Importance, threads: int
) -> dict[str, Path]:
    """Cut all files."""
    paths = {}
    for name, plan in plans.items():
        paths[name] = OUTPUT / (name.replace(", ", "-").replace(" ", "-") + ".gguf")
        api.quantize_model(model, paths[name], api.Target(plan=plan), importance, threads)
    return paths


def score(cuts: Sequence[Cut], paths: Mapping[str, Path], chunks: int, threads: int) -> list[Cut]:
    """The files with their measured divergence on held-out text."""
    text = Text.of("held out", held_out_text())
    files = [paths[cut.name] for cut in cuts]
    rows = compare(files, demo_file("bf16"), [text], chunks=chunks, threads=threads).rows[1:]
    found = []
    for cut, row in zip(cuts, rows, strict=True):
        assert row.summary.kld is not None
        found.append(replace(cut, measured=row.summary.kld.value, se=row.summary.kld.error))
    return found


def report(cuts: Sequence[Cut]) -> None:
    """Print the tables, and write JSON and the picture."""
    measured = np.array([cut.measured for cut in cuts])
    fits = {
        "measured weights": Fit.of(np.array([cut.predicted for cut in cuts]), measured),
        "priors": Fit.of(np.array([cut.believed for cut in cuts]), measured),
    }
    fit = fits["measured weights"]
    print(f"{'file':28} {'bytes':>9} {'predicted':>9} {'rescaled':>9} {'measured':>9} {'+/-':>8}")
    for cut in sorted(cuts, key=lambda cut: cut.measured):
        print(
            f"{cut.name:28} {cut.size:9} {cut.predicted:9.6f} {fit(cut.predicted):9.6f} "
            f"{cut.measured:9.6f} {cut.se:8.6f}"
        )
    for name, each in fits.items():
        print(
            f"{name}: rank correlation {each.spearman:.4f} over {len(cuts)} files; measured = "
            f"{each.floor:.6f} + {each.scale:.3g} x predicted within a factor of {each.factor:.2f}"
        )
    ratios = {kind: _ratios(cuts, kind) for kind in ("measured", "priors")}
    for kind, found in ratios.items():
        mean = np.exp(np.mean([np.log(found[name]) for name in HEADLINE]))
        each_one = ", ".join(f"{name} {found[name]:.2f}" for name in HEADLINE)
        print(
            f"divergence at equal bytes by {kind}, relative to the mixture: {mean:.2f} ({each_one})"
        )
    document = {
        "files": [vars(cut) for cut in cuts],
        "fits": {name: vars(each) for name, each in fits.items()},
        "ratios": ratios,
    }
    (FOLDER / "sensitivity.json").write_text(json.dumps(document, indent=2) + "\n")
    draw(cuts, fit)


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


def _ratios(cuts: Sequence[Cut], kind: str) -> dict[str, float]:
    measured = {cut.name: cut.measured for cut in cuts}
    return {name: measured[f"{name} size, by {kind}"] / measured[name] for name in MIXTURES}


def draw(cuts: Sequence[Cut], fit: Fit) -> None:
    """The measured divergence over the predicted one, and over size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    kinds = {"": "mixtures", "measured": "by measured weights", "priors": "by priors"}
    for kind, label in kinds.items():
        some = [cut for cut in cuts if cut.name.partition("by ")[2] == kind]
        measured = [cut.measured for cut in some]
        left.errorbar(
            [fit(cut.predicted) for cut in some],
            measured,
            [cut.se for cut in some],
            fmt="o",
            label=label,
        )
        right.plot([cut.size / 1e6 for cut in some], measured, "o-", label=label)
    ends = [min(cut.measured for cut in cuts), max(cut.measured for cut in cuts)]
    left.plot(ends, ends, color="grey")
    left.set(xscale="log", yscale="log", xlabel="predicted, rescaled", ylabel="KL divergence")
    right.set(yscale="log", xlabel="tensors (MB)", ylabel="KL divergence")
    left.legend()
    right.legend()
    figure.savefig(FOLDER / "sensitivity.png", dpi=150)


if __name__ == "__main__":
    main()
