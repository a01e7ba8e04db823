"""What is measured: a tensor with the types it could have, and what its columns and experts count.

How many of its rows are drawn, and how they are divided between its experts, stands here too.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from gemcut import ggml
from gemcut.convert.model import Tensor
from gemcut.quantize.candidates import measured, paddable
from gemcut.quantize.sample import Doubles, Strata
from gemcut.tensor_sensitivity import PARTS, Candidate


@dataclass(frozen=True)
class Sampling:
    """How much is measured."""

    rows: int = 512  # the most of a tensor, though every expert gives two of each part
    first: int = 32  # rows of the first sample
    target: float = 0.03  # relative standard error at which no more are drawn
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """A tensor to measure, its candidates, and what its columns and experts count for.

    importance: float32 [matrices, columns], or None: all alike.
    mass: float64 [matrices], what each expert's error counts for; sums to 1.
    routed: of a stack of experts, each one's share of the rows that the router sent.
    """

    tensor: Tensor
    candidates: tuple[Candidate, ...]
    importance: ggml.Floats | None
    mass: Doubles
    routed: tuple[float, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that could be written as tensors of their own."""
        return PARTS if ".ffn_gate_up_exps" in self.tensor.name else ()

    @property
    def strata(self) -> Strata:
        """Every expert's rows, and of a fused tensor every part's."""
        count = max(1, len(self.parts))
        height = self.tensor.rows // self.tensor.matrices // count
        return Strata(height, np.repeat(self.mass, count) / count)

    @property
    def is_stored(self) -> bool:
        """Whether the source holds rows as they would be written in its own type."""
        return self.tensor.raw(0, 1) is not None

    def first(self, sampling: Sampling) -> int:
        """Rows of the first sample."""
        return min(max(sampling.first, self.strata.least), self.most(sampling))

    def most(self, sampling: Sampling) -> int:
        """Rows of the largest sample."""
        return max(sampling.rows, self.strata.least)

    def width(self, candidate: Candidate) -> int:
        """Length of the rows that the candidate writes."""
        return candidate.padded_to or self.tensor.columns


def subject(
    tensor: Tensor,
    importance: ggml.Floats | None,
    mass: Doubles,
    types: Collection[str] | None = None,
    routed: Doubles | None = None,
) -> Subject:
    """A tensor with its candidates; `types` names the only ones wanted.

    Args:
        routed: [matrices], each expert's share of rows, if the tensor is a stack of experts.
    """
    pads = paddable(tensor.name)
    found = measured(tensor.columns, tensor.source_type, importance is not None, pads)
    wanted = (each for each in found if types is None or each.type.name in types)
    shares = () if routed is None else rounded(routed)
    return Subject(tensor, tuple(wanted), importance, mass, shares)


def rounded(shares: Doubles) -> tuple[float, ...]:
    """Experts' shares to four digits: more would be noise, of many."""
    return tuple(float(f"{share:.4g}") for share in shares)
