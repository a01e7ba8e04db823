"""Skew: how unevenly experts are used, and what a type for every expert could bring by that.

An expert that is used often deserves more bits than its neighbours, one that hardly ever is fewer:
at equal bytes the same file loses less. What that is worth follows from the experts' shares of rows
alone, to first order: with errors of types as on normally distributed weights, errors of all blocks
costing alike, and those of experts by their rows. It is a prediction, about the experts' part of
the KL divergence: what all else in a file loses stays. `bench/per_expert.py` measures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemcut import ggml
from gemcut.quantize import candidates
from gemcut.quantize.coverage import LayerCoverage
from gemcut.quantize.mixtures import hull
from gemcut.quantize.options import LIMITS
from gemcut.quantize.sample import Doubles
from gemcut.quantize.worth import WORTHWHILE

SIZES = (3.0, 4.0, 5.0)  # bits per weight of the experts
# Rows of another text, relative to those counted, that go to any experts alike. So the factors of
# three tiny models (0.07 to 0.85, with all else exact) were predicted 0.9 to 2 times as large. Of a
# fourth, evenly routed and not looked at before, 0.96 to 0.99 were predicted, and of whole files
# 0.87 to 0.99 measured: what experts differ in besides their rows is not in it.
_ELSEWHERE = 0.02
_POINTS = 1000  # of a hull
_LEAST_ROWS = 32  # an expert's, on average; chance alone looks like skew in fewer


@dataclass(frozen=True)
class Skew:
    """How skewed a model's routing is.

    effective: experts that, equally used, would be as varied, as a share of all; mean over blocks.
    busiest: share of the rows that the busiest quarter of a block's experts got; mean over blocks.
    factors: bits per weight of the experts -> predicted KL divergence of types per expert, of the
        experts' part and relative to types per tensor at equal bytes.
    enough: whether enough rows were counted to tell.
    """

    effective: float
    busiest: float
    factors: Mapping[float, float]
    enough: bool

    @property
    def worth(self) -> bool:
        """Whether types per expert bring something at any of the sizes."""
        return self.enough and min(self.factors.values()) < WORTHWHILE

    def to_dict(self) -> dict[str, Any]:
        """The skew as plain data."""
        return {
            "effective_share": self.effective,
            "busiest_quarter": self.busiest,
            "types_per_expert": {
                "predicted_factors": {f"{size:g}": each for size, each in self.factors.items()},
                "worth_it": self.worth,
                "enough_rows": self.enough,
            },
        }


def skew(layers: Sequence[LayerCoverage], importance: bool = True) -> Skew:
    """The skew of a model's routing; of one block at least.

    Args:
        importance: whether files will be cut with an importance matrix.
    """
    rows = sum(each.rows for each in layers) / sum(each.experts for each in layers)
    shares = [each.counts / np.float64(each.rows) for each in layers]
    return Skew(
        float(np.mean([each.effective / each.experts for each in layers])),
        float(np.mean([each.busiest for each in layers])),
        {size: factor(shares, size, importance) for size in SIZES},
        rows >= _LEAST_ROWS,
    )


def factor(shares: Sequence[Doubles], bpw: float, importance: bool = True) -> float:
    """Loss of types per expert relative to one type for all of them, at equal bytes.

    Both go along the hull of all that they could be, as in the planner's mixtures.

    Args:
        shares: of every block, those of its experts; each sums to 1.
        bpw: bits per weight of all experts together.
    """
    counted = [share + _ELSEWHERE / len(share) for share in shares]
    mass = np.concatenate(counted)
    apart = _curve(mass / mass.sum(), importance)
    alike = _curve(np.ones(1), importance)
    return float(np.interp(bpw, *apart) / np.interp(bpw, *alike))


def _curve(mass: Doubles, importance: bool) -> tuple[list[float], list[float]]:
    """Bits per weight, growing, and the least error for them, of experts that count for so much."""
    names = [*candidates.PLAIN, *(candidates.WITH_IMPORTANCE if importance else ())]
    kinds = [kind for kind in map(ggml.type_named, names) if kind.bpw >= LIMITS[0]]
    errors = np.array([candidates.error(kind, "bf16", importance) for kind in kinds])
    bits = np.array([kind.bpw for kind in kinds])
    found = hull(mass, errors, bits, _POINTS)
    sizes = [float(bits[taken].mean()) for taken in found]
    return sizes, [float(mass @ errors[taken]) for taken in found]
