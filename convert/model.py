"""What a source becomes before any type is chosen: metadata, and tensors that nobody has read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np

from gemcut import ggml
from gemcut.convert.lazy import Array, Matrix
from gemcut.gguf_file import Value
from gemcut.lattice import CLAIMED, on_q4_0_lattice

_LATTICE_ROWS = 16  # that are looked at
_EXACT_BPW = 8.0  # Q8_0 and wider: cutting from them costs next to nothing


def is_cut(kind: ggml.Type) -> bool:
    """Whether a source in this type is cut already, and not cut again unless that is asked for."""
    return kind.quantized and kind.bpw < _EXACT_BPW


@dataclass(frozen=True)
class Reading:
    """What is allowed where a source is not quite as it should be."""

    ignore: Sequence[str] = ()  # patterns of names of tensors that may be left out
    requantize: bool = False  # cut tensors again that are in a low-bit type already
    nonfinite: bool = False  # pass NaN and infinities on, into types that can hold them
    pre_tokenizer: str | None = None  # llama.cpp's name of it, where it is not recognised
    restack: bool = False  # where experts have types of their own, keep all that is cut as it is


STRICT = Reading()


@dataclass(frozen=True)
class Tensor:
    """A tensor of the result: its name and shape, and where its rows come from.

    `kept` is the type that it stays in, whatever is asked for: F32 for norms and routers, its own
    type for what is encoded already. One that is not `quantizable` gets no type below 16 bits.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str  # that the source holds (of several the largest), or the nearest float
    build: Callable[[], Array]  # opens the source
    kept: str | None = None
    quantizable: bool = True
    nonfinite: bool = False  # NaN and infinities may be in it, and are passed on
    rank: int = 0  # which of the source's files, in order, its data ends in

    @property
    def columns(self) -> int:
        """Length of a row."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Number of rows over all leading dimensions."""
        return prod(self.shape[:-1])

    @property
    def weights(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def matrices(self) -> int:
        """Number of matrices: the experts of a stacked tensor, else 1."""
        return prod(self.shape[:-2])

    @property
    def float_type(self) -> str:
        """The float type that holds the source's values, or comes closest."""
        return self.source_type if self.source_type in ("f32", "f16", "bf16") else "bf16"

    def raw(self, start: int, stop: int, kind: str | None = None) -> ggml.Bytes | None:
        """Rows' bytes [stop - start, row_bytes] in a type; None if the source has others.

        Args:
            kind: None: `source_type`.
        """
        return self._array.raw(start, stop, kind or self.source_type)

    def read(self, start: int, stop: int) -> ggml.Floats:
        """Rows [stop - start, columns] as float32."""
        return self._array.read(start, stop)

    def matrix(self, number: int) -> Matrix:
        """One of its matrices, unread."""
        return self._array.matrices[number]

    @cached_property
    def lattice(self) -> float:
        """The share of groups of 32 that lie on a Q4_0 lattice, of a few rows from all over."""
        numbers = np.linspace(0, self.rows - 1, min(_LATTICE_ROWS, self.rows)).astype(int)
        return on_q4_0_lattice(np.concatenate([self.read(n, n + 1) for n in numbers.tolist()]))

    @property
    def is_trained_for_q4_0(self) -> bool:
        """Whether Q4_0 holds its weights as they are: quantization-aware training was for that."""
        return self.lattice >= CLAIMED

    def close(self) -> None:
        """Let go of the opened source; reading opens it again."""
        self.__dict__.pop("_array", None)

    @cached_property
    def _array(self) -> Array:
        array = self.build()
        assert array.shape == self.shape, f"{self.name}: {array.shape}, not {self.shape}"
        return array


@dataclass(frozen=True)
class Model:
    """A source's metadata and tensors."""

    architecture: str
    metadata: Mapping[str, Value] = field(repr=False)
    tensors: tuple[Tensor, ...] = field(repr=False)
    family: str | None = None  # of checkpoints, for people
    notes: tuple[str, ...] = ()  # what was left out, and what else should be known
    files: frozenset[Path] = frozenset()  # of the source, which is never written to
    identity: str = ""  # a digest that changes when the source does
    # Brings what is not on this machine yet.
    fetch: Callable[[], None] = field(default=lambda: None, repr=False)
    # Raises CheckpointError or GGUFError if the source is no longer what was opened.
    check: Callable[[], None] = field(default=lambda: None, repr=False)
    # Told a rank: all tensors below it are written for good. Gives back what was read.
    release: Callable[[int], None] = field(default=lambda _: None, repr=False)

    @property
    def weights(self) -> int:
        """Number of weights of all tensors."""
        return sum(tensor.weights for tensor in self.tensors)


def releasing(tensors: Sequence[Tensor], source: Callable[[int], None]) -> Callable[[int], None]:
    """A model's `release`: closes what is written, which would hold on to the source's files.

    Args:
        source: told the rank then, to give back what was read.
    """

    def release(rank: int) -> None:
        for tensor in tensors:
            if tensor.rank < rank:
                tensor.close()
        source(rank)

    return release
