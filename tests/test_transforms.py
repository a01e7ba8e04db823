"""Transforms give views of what nobody has read, and those give the rows that numpy would."""

import numpy as np
import pytest

from gemcut.convert.lazy import Array, Mapped, Stored, stack, stored
from gemcut.convert.transforms import even_columns, interleaved_rope, per_head

HEADS, PLAIN, VALUES, COLUMNS = 3, 4, 6, 5
SIZES = {"heads": HEADS, "plain": PLAIN, "values": VALUES}


def values(*shape: int) -> np.ndarray:
    """Small whole numbers, all different: BF16 has them, too."""
    return np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(np.float32)


def bf16(array: np.ndarray) -> Array:
    return stored((array.view(np.uint32) >> 16).astype(np.uint16))


def computed(array: np.ndarray) -> Array:
    """The same, out of a matrix that has no bytes of its own."""
    (matrix,) = stored(array / 2).matrices
    return Array(array.shape, (Mapped(matrix, lambda rows: rows * 2),))


SOURCES = pytest.mark.parametrize("source", [stored, bf16, computed])


def read(array: Array) -> np.ndarray:
    """All of it, in uneven tiles."""
    tiles = [array.read(n, min(n + 7, array.rows)) for n in range(0, array.rows, 7)]
    return np.concatenate(tiles).reshape(array.shape)


@SOURCES
def test_a_projection_is_split_per_head(source):
    """Keys are turned, values are not."""
    rows = values(HEADS * (PLAIN + VALUES), COLUMNS)
    heads = rows.reshape(HEADS, PLAIN + VALUES, COLUMNS)

    keys = per_head("heads", None, "plain", turn=True)(source(rows), SIZES)
    found = per_head("heads", "plain", "values")(source(rows), SIZES)

    assert (HEADS, COLUMNS, PLAIN) == keys.shape
    assert np.array_equal(heads[:, :PLAIN].swapaxes(1, 2), read(keys))
    assert (HEADS, VALUES, COLUMNS) == found.shape
    assert np.array_equal(heads[:, PLAIN:], read(found))


@SOURCES
@pytest.mark.parametrize("shape", [(HEADS * 8, COLUMNS), (HEADS * 8,)])
def test_halves_become_pairs_within_each_head(source, shape):
    rows = values(*shape)
    halves = rows.reshape(HEADS, 2, 4, -1)

    found = interleaved_rope("heads")(source(rows), SIZES)

    assert shape == found.shape
    assert np.array_equal(halves.swapaxes(1, 2).reshape(shape), read(found))


def test_stored_bytes_are_passed_on():
    """What was BF16 is BF16, without a way through float32."""
    rows = bf16(values(HEADS * (PLAIN + VALUES), COLUMNS))
    (matrix,) = rows.matrices
    assert isinstance(matrix, Stored)
    bits = matrix.view.reshape(HEADS, PLAIN + VALUES, COLUMNS)

    keys = per_head("heads", None, "plain", turn=True)(rows, SIZES)

    raw = keys.raw(0, keys.rows)
    assert raw is not None
    assert "bf16" == keys.type
    assert bits[:, :PLAIN].swapaxes(1, 2).tobytes() == raw.tobytes()


def test_a_stack_of_vectors_stays_one():
    """Biases of experts one by one: every second element of each."""
    rows = values(HEADS, 8)

    found = even_columns(stack([stored(row) for row in rows]), SIZES)

    assert (HEADS, 4) == found.shape
    assert np.array_equal(rows[:, ::2], read(found))
