"""Types for a number of bytes, from priors alone: cheap, and before anything is measured.

Predicted cost is the sum over tensors of prior(role, depth) x relative error(type). Every tensor
starts at the smallest type of its range; then the step that saves the most cost per byte is taken
until nothing fits any more. On each tensor's convex front of size against error that is the
Lagrangian optimum, up to the last step; the bytes left over are filled with what still fits.
"""

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from gemcut import ggml
from gemcut.convert.model import Model, Tensor
from gemcut.errors import BudgetError
from gemcut.quantize.candidates import error, ladder
from gemcut.quantize.roles import Role, role_of

# Smallest bits per weight of (experts, everything else), the first that fits is taken: experts go
# down to the Q4 class before anything else moves, since they are most of the bytes.
RANGES: Mapping[str, tuple[float, float]] = {
    "default": (4.25, 5.5),
    "wide": (2.0, 4.25),
    "widest": (0.0, 0.0),
}


Names = Collection[str]  # of the tensors that there is importance for


@dataclass(frozen=True)
class _Choice:
    """A tensor with its possible types, from the smallest; costs fall along convex steps."""

    tensor: Tensor
    types: tuple[ggml.Type, ...]
    prior: float

    def bytes(self, index: int) -> int:
        return self.tensor.rows * self.types[index].row_bytes(self.tensor.columns)

    def gain(self, index: int, to: int) -> float:
        """Cost saved by going from one type to another."""
        source = self.tensor.source_type
        return self.prior * (error(self.types[index], source) - error(self.types[to], source))


def solve(model: Model, room: int, weighted: Names) -> tuple[dict[str, ggml.Type], str]:
    """Types for all tensors in at most `room` bytes, and the name of the range that was needed.

    Raises:
        BudgetError: the smallest possible choice is larger.
    """
    for name, floors in RANGES.items():
        choices = _choices(model, floors, weighted)
        least = sum(choice.bytes(0) for choice in choices)
        if least <= room:
            return _upgrade(choices, room - least), name
    raise BudgetError(
        f"{room} bytes for the tensors are too few: the smallest choice of types takes {least} "
        f"({8 * least / model.weights:.2f} bits per weight)"
    )


def smallest(model: Model, weighted: Names) -> int:
    """Bytes of the tensors in the smallest types that they can have."""
    return sum(choice.bytes(0) for choice in _choices(model, RANGES["widest"], weighted))


def _choices(model: Model, floors: tuple[float, float], weighted: Names) -> list[_Choice]:
    layers = 1 + max((role_of(t.name).layer or 0 for t in model.tensors), default=0)
    tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    choices = []
    for tensor in model.tensors:
        role = role_of(tensor.name)
        types = _types(tensor, role, floors, weighted)
        choices.append(_Choice(tensor, tuple(types), role.prior(layers, tied)))
    return choices


def _types(
    tensor: Tensor, role: Role, floors: tuple[float, float], weighted: Names
) -> list[ggml.Type]:
    if tensor.kept or not tensor.quantizable:
        return [ggml.type_named(tensor.kept or tensor.float_type)]
    floor = floors[0] if role.is_expert else floors[1]
    # An embedding is read row by row, which not every device does in the types in question.
    has_importance = tensor.name in weighted and not role.is_lookup
    front = ladder(tensor.columns, tensor.source_type, has_importance)
    allowed = [kind for kind in front if kind.bpw >= floor] or front[-1:]
    return _convex(allowed, tensor.source_type)


def _convex(front: Iterable[ggml.Type], source: str) -> list[ggml.Type]:
    """Leave out the types whose step saves less per byte than the step after it."""
    hull: list[ggml.Type] = []
    for kind in front:
        while len(hull) > 1 and _slope(hull[-2], hull[-1], source) <= _slope(
            hull[-1], kind, source
        ):
            hull.pop()
        hull.append(kind)
    return hull


def _slope(low: ggml.Type, high: ggml.Type, source: str) -> float:
    return (error(low, source) - error(high, source)) / (high.bpw - low.bpw)


def _upgrade(choices: list[_Choice], spare: int) -> dict[str, ggml.Type]:
    level = [0] * len(choices)
    heap: list[tuple[float, int]] = []

    def push(index: int) -> None:
        choice, now = choices[index], level[index]
        if now + 1 < len(choice.types):
            price = choice.bytes(now + 1) - choice.bytes(now)
            heapq.heappush(heap, (-choice.gain(now, now + 1) / price, index))

    for index in range(len(choices)):
        push(index)
    while heap:
        _, index = heapq.heappop(heap)
        choice, now = choices[index], level[index]
        price = choice.bytes(now + 1) - choice.bytes(now)
        if price <= spare:  # else this tensor stays, and cheaper steps of others may still fit
            spare -= price
            level[index] += 1
            push(index)
    return {c.tensor.name: c.types[k] for c, k in zip(choices, level, strict=True)}
