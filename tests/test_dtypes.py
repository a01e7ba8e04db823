"""Weights of 8 and 4 bits decode to exactly what torch, transformers and ggml make of them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut import ggml
from gemcut.convert import lazy
from gemcut.convert.dtypes import Doubles, Eights, Fours, Mxfp4, Scaled, leaf, values

RECORDED = np.load(Path(__file__).parent / "fixtures" / "dtypes.npz")
WEIGHTS = ("F8_E4M3", "F8_E5M2")


def same(got, wanted) -> bool:
    """Equal bits, the sign of zero among them; which NaN does not matter."""
    bits = got.view(np.uint32) == wanted.view(np.uint32)
    return got.shape == wanted.shape and bool(np.all(bits | (np.isnan(got) & np.isnan(wanted))))


def bf16(numbers):
    """Rounded to BF16's bits, to the nearest, ties to even."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def eights(weight: str, scale: str) -> Scaled:
    scales = {
        "F32": RECORDED["eights/scale"],
        "BF16": bf16(RECORDED["eights/scale"]),
        "F8_E8M0": RECORDED["eights/powers"],
    }
    codes = Eights(RECORDED["eights/codes"], weight)
    return Scaled(codes, leaf(scales[scale], scale), (16, 32))


@pytest.mark.parametrize("dtype", [*WEIGHTS, "F8_E8M0"])
def test_every_code_has_torchs_value(dtype):
    """All 256 codes, NaN and infinities among them."""
    assert same(values(dtype), RECORDED[dtype])


def test_integers():
    """8-bit integers are signed."""
    assert values("I8")[[0, 1, 127, 128, 255]].tolist() == [0, 1, 127, -128, -1]


@pytest.mark.parametrize("scale", ["F32", "BF16", "F8_E8M0"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_scaled_blocks_are_torchs(weight, scale):
    """Blocks that are cut off at both edges; read at once, by rows, and turned."""
    matrix, wanted = eights(weight, scale), RECORDED[f"eights/{weight}/{scale}"]
    assert same(matrix.read(slice(None)), wanted)
    assert same(matrix.read(slice(15, 33, 3)), wanted[15:33:3])
    picked = np.array([36, 0, 17, 17])
    assert same(matrix.read(picked), wanted[picked])
    assert same(matrix.turned().read(slice(30, 40)), np.ascontiguousarray(wanted.T[30:40]))
    assert matrix.raw(slice(None)) is None and matrix.type == "bf16"


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 40), st.integers(1, 9), st.data())
def test_any_block_is_the_expanded_scale(rows, height, columns, width, data):
    """Whatever the blocks, a weight is multiplied by the scale that lies above it."""
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes = generator.integers(0, 120, (rows, columns), dtype=np.uint8)
    scale = generator.random((-(-rows // height), -(-columns // width)), np.float32)
    matrix = Scaled(Eights(codes, "F8_E4M3"), leaf(scale, "F32"), (height, width))
    whole = scale.repeat(height, 0).repeat(width, 1)[:rows, :columns]
    wanted = values("F8_E4M3")[codes] * whole
    start = data.draw(st.integers(0, rows))
    assert same(matrix.read(slice(start, None)), wanted[start:])
    assert same(matrix.turned().turned().read(slice(None)), wanted)


def test_overflow_is_infinite_and_silent():
    """What the writer's check for finite weights has to find does not warn on its way there."""
    codes = Eights(np.array([[0x7E, 0x00, 0x7F]], np.uint8), "F8_E4M3")
    got = Scaled(codes, leaf(np.array([[np.inf]], np.float32), "F32"), (1, 3)).read(slice(None))
    assert np.isposinf(got[0, 0]) and np.isnan(got[0, 1]) and np.isnan(got[0, 2])
    assert np.isinf(Doubles(np.array([[1e300]])).read(slice(None))).all()


def test_doubles_turn():
    """F64 becomes F32, rows or columns."""
    numbers = np.arange(6.0).reshape(2, 3)
    assert Doubles(numbers).turned().read(slice(1, 3)).tolist() == [[1, 4], [2, 5]]


def gpt_oss() -> list[Mxfp4]:
    blocks, scales = RECORDED["mxfp4/blocks"], RECORDED["mxfp4/scales"]
    return [Mxfp4(b.reshape(6, 48), s) for b, s in zip(blocks, scales, strict=True)]


def test_mxfp4_decodes_as_transformers_does():
    """gpt-oss's blocks become [expert, row, column]."""
    got = np.stack([matrix.read(slice(None)) for matrix in gpt_oss()])
    assert same(got, RECORDED["mxfp4/values"])


def test_mxfp4_is_laid_out_as_llama_cpp_does():
    """The bytes of its converter, and ggml decodes them to transformers' values."""
    kind = ggml.type_named("mxfp4")
    for expert, matrix in enumerate(gpt_oss()):
        raw = matrix.raw(slice(None))
        assert raw.tobytes() == RECORDED["mxfp4/encoded"][expert].tobytes()
        # The codes of -0 and 0 are both 0 to ggml.
        assert (ggml.dequantize(kind, raw, 96) == RECORDED["mxfp4/values"][expert]).all()
        odd = lazy.Rows(matrix, slice(1, None, 2)).raw(slice(0, 2))
        assert odd is not None
        assert odd.tobytes() == RECORDED["mxfp4/encoded"][expert][[1, 3]].tobytes()


def test_turning_mxfp4_twice_keeps_its_bytes():
    """A source that is packed along columns loses nothing where the rule turns it back."""
    matrix = gpt_oss()[0]
    turned = matrix.turned()
    assert turned.raw(slice(None)) is None
    assert same(turned.read(slice(5, 7)), np.ascontiguousarray(matrix.read(slice(None)).T[5:7]))
    assert turned.turned() is matrix


def test_what_is_no_longer_in_its_blocks_is_no_mxfp4():
    """Else its codes would be made anew, of other blocks, and called the published ones."""
    matrix = gpt_oss()[0]
    assert "mxfp4" == matrix.type == lazy.Rows(matrix, slice(1, 3)).type
    assert "bf16" == matrix.turned().type == lazy.Columns(matrix, slice(0, None, 2)).type


@pytest.mark.parametrize("divides", [False, True])
def test_nvfp4_is_the_publishers(divides):
    """Scales of scales, multiplied (ModelOpt) or divided (compressed-tensors)."""
    scale, second = Eights(RECORDED["nvfp4/scale"], "F8_E4M3"), RECORDED["nvfp4/second"]
    scales = Scaled(scale, leaf(second.reshape(1, 1), "F32"), (6, 4), divides)
    matrix = Scaled(Fours(RECORDED["nvfp4/codes"]), scales, (1, 16))
    wanted = RECORDED["nvfp4/divided" if divides else "nvfp4/multiplied"]
    assert same(matrix.read(slice(None)), wanted)
    assert same(matrix.read(slice(2, 4)), wanted[2:4])
