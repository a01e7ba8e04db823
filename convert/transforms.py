"""What a family's rule may do to a tensor: views and reorderings of what nobody has read.

A transform takes the tensor as the checkpoint has it and the block's named sizes.
"""

from collections.abc import Callable, Mapping

import numpy as np

from gemcut.convert.lazy import (
    Array,
    Columns,
    Index,
    Matrix,
    Numbers,
    Rows,
    Stored,
    mapped,
    picked,
    turned,
)

Sizes = Mapping[str, int]
Transform = Callable[[Array, Sizes], Array]


def transposed(array: Array, _: Sizes) -> Array:
    """Rows for columns: experts stored as [inputs, outputs]."""
    return turned(array)


def first_half(array: Array, _: Sizes) -> Array:
    """The gate of a fused gate_up tensor, gate rows first."""
    return picked(array, slice(0, _height(array) // 2))


def second_half(array: Array, _: Sizes) -> Array:
    """The up projection of a fused gate_up tensor, gate rows first."""
    return picked(array, slice(_height(array) // 2, None))


def even_rows(array: Array, _: Sizes) -> Array:
    """The gate of an interleaved gate_up tensor."""
    return picked(array, slice(0, None, 2))


def odd_rows(array: Array, _: Sizes) -> Array:
    """The up projection of an interleaved gate_up tensor."""
    return picked(array, slice(1, None, 2))


def then(*steps: Transform) -> Transform:
    """Transforms one after the other."""

    def apply(array: Array, sizes: Sizes) -> Array:
        for step in steps:
            array = step(array, sizes)
        return array

    return apply


def plus_one(array: Array, _: Sizes) -> Array:
    """A norm's weights that the model stores as the difference from 1."""
    return mapped(array, lambda rows: rows + np.float32(1))


def minus_exp(array: Array, _: Sizes) -> Array:
    """A decay rate that the model stores as its logarithm: -exp(x), rounded once.

    llama.cpp's converter uses torch's exp, which is one step of float32 off in 1 % of all cases.
    """
    return mapped(array, lambda rows: -np.exp(rows, dtype=np.float64).astype(np.float32))


def even_columns(array: Array, _: Sizes) -> Array:
    """The gate's biases [experts, width] of an interleaved gate_up tensor."""
    return _columns(array, slice(0, None, 2))


def odd_columns(array: Array, _: Sizes) -> Array:
    """The up projection's biases [experts, width] of an interleaved gate_up tensor."""
    return _columns(array, slice(1, None, 2))


def tiled(groups: str, heads: str, size: str, start: str | None = None) -> Transform:
    """Rows or elements of heads, from group after group to the first of every group, then the next.

    ggml repeats a group's head as [0, 1, 0, 1]; transformers as [0, 0, 1, 1].

    Args:
        groups: the name of the number of groups.
        heads: the name of the number of heads in all groups.
        size: the name of a head's number of rows.
        start: the name of the number of rows before the heads, which stay, or None.
    """

    def apply(array: Array, sizes: Sizes) -> Array:
        begin = sizes[start] if start else 0
        order = begin + _tiles(sizes[groups], sizes[heads], sizes[size])
        return picked(array, np.concatenate([np.arange(begin), order]))

    return apply


def tiled_columns(groups: str, heads: str, size: str) -> Transform:
    """The same for the columns of a matrix, for what reads the heads' results."""

    def apply(array: Array, sizes: Sizes) -> Array:
        return _columns(array, _tiles(sizes[groups], sizes[heads], sizes[size]))

    return apply


def _tiles(groups: int, heads: int, size: int) -> Numbers:
    numbers = np.arange(heads * size).reshape(groups, heads // groups, size)
    return numbers.swapaxes(0, 1).reshape(-1)


def _columns(array: Array, numbers: Index) -> Array:
    return array.each(lambda matrix: Columns(matrix, numbers))


def interleaved_rope(heads: str) -> Transform:
    """Rows of a query or key projection, from halves to pairs within each head.

    llama.cpp's LLAMA rope rotates neighbours (2i, 2i + 1); transformers rotates (i, i + n/2).

    Args:
        heads: the name of the size that counts them.
    """

    def apply(array: Array, sizes: Sizes) -> Array:
        size = _height(array) // sizes[heads]
        numbers = np.arange(sizes[heads] * size).reshape(sizes[heads], 2, size // 2)
        return picked(array, numbers.swapaxes(1, 2).reshape(-1))

    return apply


def per_head(heads: str, start: str | None, size: str, turn: bool = False) -> Transform:
    """Of a projection [heads * height, columns] some of each head's rows: [heads, size, columns].

    Args:
        start: the name of the size to skip in each head, or None.
        size: the name of the number of rows to take.
        turn: give [heads, columns, size] instead.
    """

    def apply(array: Array, sizes: Sizes) -> Array:
        (matrix,) = array.matrices
        height = matrix.rows // sizes[heads]
        begin = sizes[start] if start else 0
        spans = [
            slice(head * height + begin, head * height + begin + sizes[size])
            for head in range(sizes[heads])
        ]
        parts = tuple(_span(matrix, span) for span in spans)
        found = Array((sizes[heads], sizes[size], array.columns), parts)
        return turned(found) if turn else found

    return apply


def _span(matrix: Matrix, span: slice) -> Matrix:
    return Stored(matrix.view[span]) if isinstance(matrix, Stored) else Rows(matrix, span)


def _height(array: Array) -> int:
    return array.shape[-2] if len(array.shape) > 1 else array.shape[0]
