"""What is in a model: its tensors counted by role, for people and for JSON."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from gemcut.gguf_file import TensorInfo


@dataclass
class Part:
    """All tensors of one role; `size` in bytes."""

    role: str
    tensors: int = 0
    weights: int = 0
    size: int = 0
    types: dict[str, int] = field(default_factory=dict)

    def add(self, info: TensorInfo) -> None:
        """Count one tensor."""
        self.tensors += 1
        self.weights += info.weights
        self.size += info.nbytes
        self.types[info.type.name] = self.types.get(info.type.name, 0) + 1


@dataclass(frozen=True)
class Inspection:
    """A model's parts, the largest first, and what should be known about it."""

    architecture: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights of all tensors."""
        return sum(part.weights for part in self.parts)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(part.size for part in self.parts)

    @property
    def bpw(self) -> float:
        """Bits per weight over all tensors."""
        return 8 * self.size / max(self.weights, 1)  # a file may hold a vocabulary alone

    def to_dict(self) -> dict[str, Any]:
        """The inspection as JSON knows it."""
        totals = {"weights": self.weights, "size": self.size, "bpw": self.bpw}
        return asdict(self) | totals


def inspect(
    architecture: str, tensors: Iterable[tuple[str, TensorInfo]], notes: Iterable[str] = ()
) -> Inspection:
    """Count tensors, each given with its role."""
    parts: dict[str, Part] = {}
    for role, info in tensors:
        parts.setdefault(role, Part(role)).add(info)
    largest_first = sorted(parts.values(), key=lambda part: -part.size)
    return Inspection(architecture, tuple(largest_first), tuple(notes))
