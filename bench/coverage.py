"""How often the 95 % intervals contain the truth: resamples of whole documents.

    PYTHONPATH=. python bench/coverage.py [FILE ... --reference REF] [--resamples 2000]

The held-out modules of the demo's text are the population, what all of them give is the truth.
Every resample draws as many modules, with replacement, and makes of them what `gemcut eval` would;
beside it stand Student's interval without the resampling, and the one that takes tokens as
independent, as llama.cpp's "+/-" does. Then the same of made-up documents with skewed divergences.

What this shows is that intervals hold for texts like these: 15 modules of one library are the whole
population, so nothing rare is in it that a sample could miss. The made-up documents have a tail.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Self

import numpy as np
from common import Cell, Table, demo_file, record

from gemcut.demo.text import HELD_OUT, library
from gemcut.eval.compare import compare
from gemcut.eval.comparison import Comparison
from gemcut.eval.statistics import student
from gemcut.eval.statistics.intervals import CONFIDENCE, Clusters, Values, estimates, totals
from gemcut.eval.statistics.resampling import Floats
from gemcut.eval.texts.text import Text
from gemcut.score import Scores

CLAIM = (
    "The 95 % intervals of `gemcut eval` hold the truth as often as they say, where those that "
    "take tokens as independent do not."
)
KINDS = ("q8_0", "q6_k", "q4_k_m", "q4_0")
INTERVALS = ("gemcut's", "Student's", "tokens as independent")
_SHARE = (1 + CONFIDENCE) / 2
_NORMAL = NormalDist().inv_cdf(_SHARE)
_SKEWED = {"lognormal": lambda random, n: np.exp(0.7 * random.normal(size=n) - 0.245)}
_SKEWED["gamma"] = lambda random, n: random.gamma(0.5, 2.0, size=n)


@dataclass(frozen=True)
class Documents:
    """What a statistic comes to in each document: total, total of squares, number of tokens."""

    totals: Floats
    squares: Floats
    sizes: Floats

    @classmethod
    def of(cls, values: Values, owners: Clusters) -> Self:
        """From one value per token."""
        wide = values.astype(np.float64)
        (total, square), sizes = totals([wide, wide**2], owners)
        return cls(total, square, sizes)

    def drawn(self, random: np.random.Generator) -> Self:
        """As many documents, with replacement."""
        at = random.integers(0, len(self.sizes), len(self.sizes))
        return type(self)(self.totals[at], self.squares[at], self.sizes[at])

    @property
    def mean(self) -> float:
        """Over all tokens."""
        return float(self.totals.sum() / self.sizes.sum())

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Ours, Student's, and that of independent tokens."""
        (ours,), n = estimates(self.totals[None], self.sizes), self.sizes.sum()
        tokens = _NORMAL * math.sqrt((self.squares.sum() / n - ours.value**2) / n)
        reach = student.quantile(_SHARE, len(self.sizes) - 1) * ours.error
        around = dict(zip(INTERVALS[1:], (reach, tokens), strict=True))
        ends = {name: (ours.value - r, ours.value + r) for name, r in around.items()}
        return {INTERVALS[0]: (ours.low, ours.high)} | ends


def main() -> None:
    """Print the coverage of each statistic of each file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    rows: list[list[Cell]] = []
    for seed in range(arguments.seeds):
        for kind in _SKEWED:
            for count in (6, 15, 30, 100):
                held = _of_made_up(kind, count, arguments.resamples, seed)
                rows.append(_shown(f"{count} made-up documents, {kind}", held))
    paths = [library() / name for name in HELD_OUT]
    texts = [Text.read(path) for path in paths if path.is_file()]
    files = arguments.files or [demo_file(kind) for kind in KINDS]
    found = compare(files, arguments.reference or demo_file("bf16"), texts, arguments.n_ctx)
    for name, documents in _statistics(found).items():
        for seed in range(arguments.seeds):
            rows.append(_shown(name, _coverage(documents, arguments.resamples, seed)))
    columns = ("statistic", *(f"{name}, %" for name in INTERVALS))
    table = Table(f"{arguments.resamples} resamples each", columns, rows)
    print(table)
    record("coverage", CLAIM, [table])


def _statistics(found: Comparison) -> dict[str, Documents]:
    """Each statistic of each file."""
    assert found.reference and found.reference.scores and found.clusters is not None
    base, owners = found.reference.scores, np.repeat(found.clusters, _lengths(found))
    return {
        f"{row.column.name} {name}": Documents.of(values, owners)
        for row in found.files
        if row.scores
        for name, values in _compared(row.scores, base).items()
    }


def _lengths(found: Comparison) -> list[int]:
    return [chunk.n_scored for chunk in found.chunks]


def _compared(scores: Scores, base: Scores) -> dict[str, Values]:
    assert scores.divergence is not None
    return {
        "mean KLD": scores.divergence.kld,
        "ln PPL ratio": scores.nll - base.nll,
        "same top": scores.divergence.same_top,
    }


def _coverage(documents: Documents, resamples: int, seed: int) -> dict[str, float]:
    """The share of resamples whose interval holds the truth, for each kind of interval."""
    random = np.random.default_rng(seed)
    samples = [documents.drawn(random) for _ in range(resamples)]
    return _held(samples, documents.mean)


def _of_made_up(kind: str, count: int, resamples: int, seed: int) -> dict[str, float]:
    """The same of documents whose mean is 1 and skewed, and whose length differs."""
    random = np.random.default_rng(seed)
    samples = []
    for _ in range(resamples):
        means, sizes = _SKEWED[kind](random, count), 1e4 * np.exp(0.5 * random.normal(size=count))
        samples.append(Documents(means * sizes, 2 * means**2 * sizes, sizes))
    return _held(samples, 1.0)


def _held(samples: list[Documents], truth: float) -> dict[str, float]:
    found = [sample.intervals() for sample in samples]
    return {
        name: float(np.mean([low <= truth <= high for low, high in (each[name] for each in found)]))
        for name in found[0]
    }


def _shown(title: str, held: Mapping[str, float]) -> list[Cell]:
    return [title, *(round(100 * held[name], 2) for name in INTERVALS)]


if __name__ == "__main__":
    main()
