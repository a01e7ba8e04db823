"""Arrays that nobody has read yet: rows are decoded when somebody asks for them.

A `Matrix` gives rows by their numbers. Picking, reordering and turning a matrix give a matrix
again, so a family's transforms cost nothing until a tile of the result is wanted. An `Array` is
what a tensor holds: matrices one after the other.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from gemcut import ggml

Raw = npt.NDArray[Any]
Numbers = npt.NDArray[np.int64]
Index = slice | Numbers

# BF16 has no numpy type: its bits are carried as uint16, which no checkpoint uses for weights.
_FLOATS = {np.dtype("<u2"): "bf16", np.dtype("<f2"): "f16", np.dtype("<f4"): "f32"}


class Matrix(ABC):
    """A matrix [rows, columns]; `type` is the ggml type that the source holds, or comes closest."""

    rows: int
    columns: int
    type: str

    @abstractmethod
    def read(self, index: Index) -> ggml.Floats:
        """The rows [n, columns] with these numbers, as float32."""

    def raw(self, index: Index) -> ggml.Bytes | None:
        """The rows' bytes [n, row_bytes] in `type`, or None where the source holds other bytes."""
        return None

    def turned(self) -> "Matrix":
        """The transpose."""
        return Turned(self)


class Stored(Matrix):
    """A view [rows, columns] of mapped floats, of any strides; BF16 as uint16 bits."""

    def __init__(self, view: Raw) -> None:
        self.view = view
        self.rows, self.columns = view.shape
        self.type = _FLOATS[view.dtype]

    def read(self, index: Index) -> ggml.Floats:
        rows = self.view[index]
        if rows.dtype == np.uint16:
            raw = np.ascontiguousarray(rows).view(np.uint8)
            return ggml.dequantize(ggml.type_named(self.type), raw, self.columns)
        return rows.astype(np.float32, copy=False)

    def raw(self, index: Index) -> ggml.Bytes:
        return np.ascontiguousarray(self.view[index]).view(np.uint8)

    def turned(self) -> Matrix:
        return Stored(self.view.T)


class Encoded(Matrix):
    """Rows that ggml encoded already: bytes [rows, row_bytes] of a type."""

    def __init__(self, data: ggml.Bytes, kind: ggml.Type, columns: int) -> None:
        self.data, self.kind = data, kind
        self.rows, self.columns, self.type = len(data), columns, kind.name

    def read(self, index: Index) -> ggml.Floats:
        return ggml.dequantize(self.kind, self.data[index], self.columns)

    def raw(self, index: Index) -> ggml.Bytes:
        return self.data[index]


class Rows(Matrix):
    """Some rows of a matrix, in any order."""

    def __init__(self, base: Matrix, chosen: Index) -> None:
        self.base = base
        # A range where possible: the numbers of every expert's rows would add up.
        self.numbers = range(base.rows)[chosen] if isinstance(chosen, slice) else chosen
        self.rows, self.columns, self.type = len(self.numbers), base.columns, base.type

    def read(self, index: Index) -> ggml.Floats:
        return self.base.read(self._of_base(index))

    def raw(self, index: Index) -> ggml.Bytes | None:
        return self.base.raw(self._of_base(index))

    def _of_base(self, index: Index) -> Index:
        if isinstance(self.numbers, range) and isinstance(index, slice):
            picked = self.numbers[index]
            if picked.step > 0:
                return slice(picked.start, picked.stop, picked.step)
            return np.array(picked)
        return np.asarray(self.numbers)[index]


class Columns(Matrix):
    """Some columns of a matrix, in any order."""

    def __init__(self, base: Matrix, chosen: Index) -> None:
        self.base = base
        self.numbers = np.arange(base.columns)[chosen]
        self.rows, self.columns, self.type = base.rows, len(self.numbers), _float_type(base)

    def read(self, index: Index) -> ggml.Floats:
        return self.base.read(index)[:, self.numbers]


class Turned(Matrix):
    """A matrix's transpose, for sources whose bytes numpy cannot turn; reads all of it."""

    def __init__(self, base: Matrix) -> None:
        self.base = base
        self.rows, self.columns, self.type = base.columns, base.rows, _float_type(base)

    def read(self, index: Index) -> ggml.Floats:
        return np.ascontiguousarray(self.base.read(slice(None)).T[index])

    def turned(self) -> Matrix:
        return self.base


def _float_type(base: Matrix) -> str:
    """The type of what is no longer in the base's rows, and so not in blocks of them either."""
    return base.type if base.type in _FLOATS.values() else "bf16"


class Mapped(Matrix):
    """A matrix whose values go through a function, element by element."""

    type = "f32"

    def __init__(self, base: Matrix, function: Callable[[ggml.Floats], ggml.Floats]) -> None:
        self.base, self.function = base, function
        self.rows, self.columns = base.rows, base.columns

    def read(self, index: Index) -> ggml.Floats:
        return self.function(self.base.read(index))


@dataclass(frozen=True)
class Array:
    """What a tensor holds: matrices that, one after the other, give the rows of `shape`."""

    shape: tuple[int, ...]
    matrices: tuple[Matrix, ...]

    @property
    def columns(self) -> int:
        """Length of a row."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Number of rows over all leading dimensions."""
        return prod(self.shape[:-1])

    @cached_property
    def type(self) -> str:
        """The type that the source holds; F32 where its parts differ."""
        types = {matrix.type for matrix in self.matrices}
        return types.pop() if len(types) == 1 else "f32"

    def read(self, start: int, stop: int) -> ggml.Floats:
        """Rows [stop - start, columns] as float32."""
        pieces = [matrix.read(index) for matrix, index in self._within(start, stop)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def raw(self, start: int, stop: int, kind: str | None = None) -> ggml.Bytes | None:
        """The rows' bytes [stop - start, row_bytes] in a type, or None if the source has others.

        Args:
            kind: None: `type`.
        """
        pieces = []
        for matrix, index in self._within(start, stop):
            piece = matrix.raw(index) if matrix.type == (kind or self.type) else None
            if piece is None:
                return None
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def each(self, function: Callable[[Matrix], Matrix]) -> "Array":
        """The function applied to every matrix; all results have one shape.

        Where it leaves their rows, vectors and stacks of vectors stay what they are.
        """
        matrices = tuple(map(function, self.matrices))
        (old, *_), (new, *_) = self.matrices, matrices
        height = self.shape[:-1] if new.rows == old.rows else (*self.shape[:-2], new.rows)
        return Array((*height, new.columns), matrices)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(matrix.rows for matrix in self.matrices))

    def _within(self, start: int, stop: int) -> list[tuple[Matrix, slice]]:
        """The matrices that hold these rows, and which of each one's."""
        found = []
        number = bisect_right(self._ends, start)
        while start < stop:
            matrix, end = self.matrices[number], self._ends[number]
            begin = end - matrix.rows
            found.append((matrix, slice(start - begin, min(stop, end) - begin)))
            start, number = end, number + 1
        return found


def stored(data: Raw, leaf: Callable[[Raw], Matrix] = Stored) -> Array:
    """Mapped floats of any shape; a vector is one row, dimensions of 1 inside are dropped.

    Args:
        leaf: makes a matrix of a view [rows, columns].
    """
    if data.ndim > 2:
        data = data.reshape([n for n in data.shape[:-1] if n > 1] + [data.shape[-1]])
    if data.ndim <= 2:
        return Array(data.shape, (leaf(np.atleast_2d(data)),))
    flat = data.reshape(-1, *data.shape[-2:])
    return Array(data.shape, tuple(map(leaf, flat)))


def stack(arrays: Sequence[Array]) -> Array:
    """Arrays of one shape, one after the other along a new first dimension."""
    matrices = tuple(matrix for array in arrays for matrix in array.matrices)
    return Array((len(arrays), *arrays[0].shape), matrices)


def turned(array: Array) -> Array:
    """Every matrix transposed."""
    return array.each(lambda matrix: matrix.turned())


def mapped(array: Array, function: Callable[[ggml.Floats], ggml.Floats]) -> Array:
    """Values through an elementwise function, in float32."""
    return Array(array.shape, tuple(Mapped(matrix, function) for matrix in array.matrices))


def picked(array: Array, rows: Index) -> Array:
    """Rows of every matrix, in any order; of a vector, its elements."""
    if len(array.shape) == 1:
        return array.each(lambda vector: Columns(vector, rows))

    def pick(matrix: Matrix) -> Matrix:
        if isinstance(matrix, Stored) and isinstance(rows, slice):
            return Stored(matrix.view[rows])
        return Rows(matrix, rows)

    return array.each(pick)
