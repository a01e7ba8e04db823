"""What the header of a GGUF holds: metadata values of exact kinds, and the table of tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from gemcut import ggml


@dataclass(frozen=True)
class Value:
    """A metadata value: `kind` is a scalar's name, "str", or an array of one, as in "[u32]"."""

    kind: str
    data: Any


class Deferred(Value):
    """A value that is worked out when somebody looks at it: merges take longer than all headers."""

    _make: Callable[[], Any]

    def __init__(self, kind: str, make: Callable[[], Any]) -> None:
        self.__dict__.update(kind=kind, _make=make)  # frozen to others

    @cached_property
    def data(self) -> Any:
        """What was worked out. Raises what working it out raises."""
        return self._make()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and (self.kind, self.data) == (other.kind, other.data)

    def __hash__(self) -> int:
        return hash(self.kind)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file. `shape` is row-major, as numpy counts: rows of `shape[-1]` weights."""

    name: str
    shape: tuple[int, ...]
    type: ggml.Type
    offset: int = 0  # bytes from the start of the data section

    @property
    def weights(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def rows(self) -> int:
        """Number of rows over all leading dimensions."""
        return prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        return self.type.row_bytes(self.shape[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of the encoded tensor, without padding."""
        return self.rows * self.row_bytes
