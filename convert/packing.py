"""How packed weights and their scales fit together by shape, and the matrices that they make.

Shapes alone are looked at until the data is opened.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from gemcut.convert.dtypes import Fours, Mxfp4, Scaled, leaf
from gemcut.convert.lazy import Array, Matrix, Raw, turned
from gemcut.convert.source import RawTensor
from gemcut.errors import CheckpointError

# A byte that scales is the exponent of a power of two.
_SCALE_TYPES = {t: t for t in ("F32", "BF16", "F16", "F64", "F8_E8M0")} | {"U8": "F8_E8M0"}
_USUAL = 128  # rows and columns of a block, where config.json does not say otherwise

Block = tuple[int, int]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Packing:
    """Raw tensors, the weights first, that together hold one tensor of `shape`."""

    parts: tuple[RawTensor, ...]
    shape: Shape
    open: Callable[[], Array]


@dataclass(frozen=True)
class _Scales:
    """A tensor of scales, and how many rows and columns each of them goes for."""

    tensor: RawTensor
    shape: Shape  # with as many dimensions as what is scaled
    block: Block
    turn: bool = False
    divides: bool = False

    def applied(self, bases: Sequence[Matrix]) -> list[Matrix]:
        """Matrices scaled one by one, or all of them by the same scales."""
        views = _views(self.tensor, self.shape)
        dtype = _SCALE_TYPES[self.tensor.dtype]
        scales = [leaf(view.T if self.turn else view, dtype) for view in views]
        scales *= len(bases) // len(scales)
        return [
            Scaled(base, scale, self.block, self.divides)
            for base, scale in zip(bases, scales, strict=True)
        ]


def eights(weights: RawTensor, scale: RawTensor, block: Block | None) -> Packing:
    """8-bit weights, with scales per tensor, expert, row, column or block.

    Args:
        block: rows and columns of a block, as far as config.json says.

    Raises:
        CheckpointError: the shapes do not fit together.
    """
    scales = _fit(weights.shape, scale, block)

    def opened() -> Array:
        bases = [leaf(view, weights.dtype) for view in _views(weights, weights.shape)]
        return Array(weights.shape, tuple(scales.applied(bases)))

    return Packing((weights, scale), weights.shape, opened)


def mxfp4(weights: RawTensor, scale: RawTensor) -> Packing:
    """4-bit weights with a power of two for every 32: bytes [..., columns / 2], or in blocks of 16.

    Raises:
        CheckpointError: the shapes do not fit together.
    """
    packed = weights.shape
    if len(packed) == len(scale.shape) + 1:  # gpt-oss: [..., columns / 32, 16]
        packed = (*packed[:-2], prod(packed[-2:]))
    shape, turn = _unpacked(weights, packed, scale, 16)

    def opened() -> Array:
        pairs = zip(_views(weights, packed), _views(scale, scale.shape), strict=True)
        return _array([Mxfp4(*_upright(pair, turn)) for pair in pairs], shape, turn)

    return Packing((weights, scale), shape, opened)


def nvfp4(weights: RawTensor, scale: RawTensor, second: RawTensor, divides: bool) -> Packing:
    """4-bit weights, E4M3 scales for every 16, and scales of those per tensor or expert.

    Args:
        divides: the second scales divide the first ones rather than multiply them.

    Raises:
        CheckpointError: the shapes do not fit together.
    """
    shape, turn = _unpacked(weights, weights.shape, scale, 8)
    grid = (*shape[:-2], shape[-1], shape[-2] // 16) if turn else (*shape[:-1], shape[-1] // 16)
    seconds = _fit(grid, second, None, halves=True, divides=divides)

    def opened() -> Array:
        pairs = zip(_views(weights, weights.shape), _views(scale, scale.shape), strict=True)
        upright = [_upright(pair, turn) for pair in pairs]
        scales = seconds.applied([leaf(view, scale.dtype) for _, view in upright])
        found = zip(upright, scales, strict=True)
        return _array([Scaled(Fours(c), each, (1, 16)) for (c, _), each in found], shape, turn)

    return Packing((weights, scale, second), shape, opened)


def _views(tensor: RawTensor, shape: Shape) -> list[Raw]:
    """The data as matrices [rows, columns]."""
    return list(tensor.view().reshape(prod(shape[:-2]), *shape[-2:]))


def _upright(pair: tuple[Raw, Raw], turn: bool) -> tuple[Raw, Raw]:
    return (pair[0].T, pair[1].T) if turn else pair


def _array(matrices: Sequence[Matrix], shape: Shape, turn: bool) -> Array:
    """An array of `shape`, of matrices that may have to be turned for it."""
    if not turn:
        return Array(shape, tuple(matrices))
    return turned(Array((*shape[:-2], shape[-1], shape[-2]), tuple(matrices)))


def _unpacked(weights: RawTensor, packed: Shape, scale: RawTensor, size: int) -> tuple[Shape, bool]:
    """The shape of 4-bit weights, and whether they lie along columns: `size` bytes share a scale.

    Experts stored as [inputs, outputs] (Llama 4) are packed along their inputs all the same.
    """
    scales = scale.shape
    if len(packed) == len(scales) and len(packed) in (2, 3) and packed[:-2] == scales[:-2]:
        if packed[-2] == scales[-2] and packed[-1] == size * scales[-1]:
            return (*packed[:-1], 2 * packed[-1]), False
        if packed[-1] == scales[-1] and packed[-2] == size * scales[-2]:
            return (*packed[:-2], 2 * packed[-2], packed[-1]), True
    raise _misfit(weights.shape, scale, f"one for every {size} bytes of {weights.name}")


def _fit(
    shape: Shape,
    scale: RawTensor,
    block: Block | None,
    halves: bool = False,
    divides: bool = False,
) -> _Scales:
    """Match scales with what they scale.

    Args:
        halves: scales without a dimension for columns may go for several rows, too: those of gate
            and up in a fused tensor.
    """
    if scale.dtype not in _SCALE_TYPES:
        raise CheckpointError(f"{scale.file}: {scale.name} is {scale.dtype}: not for scales")
    n = len(shape)
    whole = len(scale.shape) == n
    if prod(scale.shape) == 1:
        padded: Shape = (1,) * n
    else:
        padded = scale.shape + (1,) * (n - len(scale.shape))
    if n in (2, 3) and len(padded) == n and (n == 2 or padded[0] in (1, shape[0])):
        for turn in (False, True) if whole and n == 3 else (False,):
            rows, columns = padded[-2:][::-1] if turn else padded[-2:]
            wanted, parts = block or (0, 0), whole or halves
            height = _extent(shape[-2], rows, wanted[0], parts)
            width = _extent(shape[-1], columns, wanted[1], parts)
            if height and width:
                return _Scales(scale, padded, (height, width), turn, divides)
    raise _misfit(shape, scale, "per tensor, row, column or block" + f" of {block}" * bool(block))


def _extent(n: int, count: int, wanted: int, parts: bool) -> int:
    """How many of n rows (or columns) each of `count` scales goes for, or 0 if that is unclear."""
    if count == 1 or n == 0:
        return max(n, 1)
    if count == n:
        return 1
    if not parts or not 0 < count < n:
        return 0
    if wanted and -(-n // wanted) == count:
        return wanted
    # Two blocks of 128, the last cut off, or two of 96?
    ragged = n % _USUAL and -(-n // _USUAL) == count
    return n // count if n % count == 0 and not ragged else 0


def _misfit(shape: Shape, scale: RawTensor, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{scale.file}: {scale.name} has shape {list(scale.shape)}, which does not fit weights "
        f"{list(shape)}: wanted scales {wanted}"
    )
