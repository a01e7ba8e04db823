"""Weights of 8 and 4 bits with their scales, decoded to float32 row by row.

Formats: 8-bit floats as in "FP8 Formats for Deep Learning" (E4M3 in the variant without infinities,
E5M2), 4-bit floats (E2M1) and powers of two (E8M0) as in the OCP Microscaling specification 1.0.
The arithmetic is float32's, so the result is, bit for bit, what torch gives for weight * scale.
"""

from functools import cache

import numpy as np

from gemcut import ggml
from gemcut.convert.lazy import Index, Matrix, Raw, Stored

GROUP = {"mxfp4": 32, "nvfp4": 16}  # weights per scale
_PIECE = 1 << 16  # codes looked up at a time: the lookup's own copies should stay in cache
_FOURS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1 without its sign


@cache
def values(dtype: str) -> ggml.Floats:
    """What each of the 256 codes of an 8-bit type stands for, as safetensors names the type."""
    codes = np.arange(256, dtype=np.uint8)
    if dtype == "I8":
        return codes.view(np.int8).astype(np.float32)
    if dtype == "F8_E5M2":  # the upper byte of an F16
        return (codes.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype == "F8_E8M0":
        return np.where(codes == 255, np.nan, np.ldexp(1.0, codes.astype(np.int32) - 127)).astype(
            np.float32
        )
    exponents, fractions = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float32)
    normal = np.ldexp(1 + fractions / 8, exponents - 7)
    found = np.where(exponents == 0, np.ldexp(fractions, -9), normal)
    found[codes & 127 == 127] = np.nan
    return np.where(codes & 128, -found, found).astype(np.float32)


@cache
def _pairs() -> Raw:
    """The two weights of each byte of 4-bit floats, low nibble first, as one 8-byte number."""
    fours = np.array([*_FOURS, *(-value for value in _FOURS)], np.float32)
    codes = np.arange(256)
    return np.stack([fours[codes & 15], fours[codes >> 4]], axis=1).view(np.uint64)[:, 0]


def _look_up(table: Raw, codes: Raw, out: Raw) -> None:
    step = max(1, _PIECE // max(1, codes.shape[1]))
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        np.take(table, codes[part], out=out[part], mode="clip")


class Doubles(Matrix):
    """A view [rows, columns] of F64."""

    type = "f32"

    def __init__(self, view: Raw) -> None:
        self.view = view
        self.rows, self.columns = view.shape

    def read(self, index: Index) -> ggml.Floats:
        with np.errstate(over="ignore"):  # becomes infinite, which the writer refuses
            return self.view[index].astype(np.float32)

    def turned(self) -> Matrix:
        return Doubles(self.view.T)


class Eights(Matrix):
    """A view [rows, columns] of 8-bit codes; all their values are among BF16's."""

    type = "bf16"

    def __init__(self, view: Raw, dtype: str) -> None:
        self.view, self.dtype = view, dtype
        self.rows, self.columns = view.shape

    def read(self, index: Index) -> ggml.Floats:
        codes = self.view[index]
        out = np.empty(codes.shape, np.float32)
        _look_up(values(self.dtype), codes, out)
        return out

    def turned(self) -> Matrix:
        return Eights(self.view.T, self.dtype)


class Fours(Matrix):
    """A view [rows, columns / 2] of bytes with two 4-bit floats each, the low nibble first."""

    type = "bf16"

    def __init__(self, view: Raw) -> None:
        self.view = view
        self.rows, self.columns = len(view), 2 * view.shape[1]

    def read(self, index: Index) -> ggml.Floats:
        codes = self.view[index]
        out = np.empty(codes.shape, np.uint64)
        _look_up(_pairs(), codes, out)
        return out.view(np.float32)


class Scaled(Matrix):
    """Weights times scales, which each go for a block of rows and columns.

    The last blocks may be cut off. The scales may be scaled themselves.
    """

    type = "bf16"

    def __init__(
        self, weights: Matrix, scales: Matrix, block: tuple[int, int], divides: bool = False
    ) -> None:
        self.weights, self.scales, self.block, self.divides = weights, scales, block, divides
        self.rows, self.columns = weights.rows, weights.columns

    def read(self, index: Index) -> ggml.Floats:
        out, scales = self.weights.read(index), self._scales(index)
        apply = np.divide if self.divides else np.multiply
        width = self.block[1]
        whole, n = self.columns // width, len(out)
        with np.errstate(all="ignore"):  # NaN and infinities are found by the writer
            if width == 1 or scales.shape[1] == 1:
                return apply(out, scales, out=out)
            body, rest = out[:, : whole * width].reshape(n, whole, width), out[:, whole * width :]
            apply(body, scales[:, :whole, None], out=body)
            apply(rest, scales[:, whole:], out=rest)
        return out

    def turned(self) -> Matrix:
        block = self.block[::-1]
        return Scaled(self.weights.turned(), self.scales.turned(), block, self.divides)

    def _scales(self, index: Index) -> ggml.Floats:
        """One row for every row asked for, or one row for all."""
        if self.scales.rows == 1:
            return self.scales.read(slice(0, 1))
        if self.block[0] == 1:
            return self.scales.read(index)
        if isinstance(index, slice):
            index = np.arange(*index.indices(self.rows))
        return self.scales.read(index // self.block[0])


class Mxfp4(Scaled):
    """4-bit floats with a power of two for every 32, which ggml has as a type of its own."""

    type = "mxfp4"

    def __init__(self, codes: Raw, scales: Raw) -> None:
        """Take bytes [rows, columns / 2] and [rows, columns / 32]."""
        super().__init__(Fours(codes), Eights(scales, "F8_E8M0"), (1, GROUP["mxfp4"]))
        self.codes, self.exponents = codes, scales

    def raw(self, index: Index) -> ggml.Bytes:
        """Blocks of ggml-common.h's `block_mxfp4`: the scale, then byte j has weights j and j + 16.

        The sources have weights 2j and 2j + 1 in byte j.
        """
        exponents = self.exponents[index]
        n, blocks = exponents.shape
        codes = self.codes[index].reshape(n, blocks, 16)
        low, high = codes[:, :, :8], codes[:, :, 8:]
        out = np.empty((n, blocks, 17), np.uint8)
        out[:, :, 0] = exponents
        out[:, :, 1::2] = low & 0x0F | high << 4
        out[:, :, 2::2] = low >> 4 | high & 0xF0
        return out.reshape(n, blocks * 17)

    def turned(self) -> Matrix:
        return Matrix.turned(self)


def leaf(view: Raw, dtype: str) -> Matrix:
    """A view [rows, columns] of one type of number, without scales. Raises KeyError: none such."""
    if dtype in ("BF16", "F16", "F32"):
        return Stored(view)
    if dtype == "F64":
        return Doubles(view)
    if dtype in ("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8"):
        return Eights(view, dtype)
    raise KeyError(dtype)
