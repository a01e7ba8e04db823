"""Raw tensors are put together by name, type and shape; what does not fit is refused at once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut.convert.compressed import logical
from gemcut.convert.dtypes import values
from gemcut.convert.shards import DTYPES
from gemcut.errors import CheckpointError

FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


@dataclass(frozen=True)
class Held:
    """A raw tensor in memory."""

    name: str
    dtype: str
    data: np.ndarray[Any, Any]
    file: str = "model.safetensors"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def view(self):
        return self.data


def make(**tensors: Any) -> dict[str, Held]:
    """Raw tensors of these types and shapes, with values that are no NaN: `a__b=("F32", 3, 4)`."""
    generator = np.random.default_rng(0)
    found = {}
    for key, (dtype, *shape) in tensors.items():
        name = key.replace("__", ".")
        if dtype in ("F32", "F16", "F64"):
            data = generator.random(shape).astype(DTYPES[dtype])
        else:
            data = generator.integers(60, 120, shape).astype(DTYPES[dtype])
        found[name] = Held(name, dtype, data, f"{name.partition('.')[0]}.safetensors")
    return found


def read(source) -> np.ndarray[Any, Any]:
    array = source.open()
    assert array.shape == source.shape
    return array.read(0, array.rows).reshape(source.shape)


def test_plain_floats_are_themselves():
    """And integers are there, for the rules to skip, but cannot be opened."""
    raw = make(a=("BF16", 2, 3), b=("F32", 4), c=("F64", 2, 2), ids=("I64", 5), mask=("U8", 3))
    found = logical(raw, {})
    assert list(found) == list(raw)
    assert (read(found["b"]) == raw["b"].data).all()
    assert found["a"].open().type == "bf16" and found["c"].open().type == "f32"
    assert (read(found["c"]) == raw["c"].data.astype(np.float32)).all()
    for name in ("ids", "mask"):
        with pytest.raises(CheckpointError, match=f"{name} is .*wanted floats"):
            found[name].open()


BLOCKS = {
    "x__weight": ("F8_E4M3", 200, 300),
    "x__weight_scale_inv": ("F32", 2, 3),
}


@pytest.mark.parametrize(
    ("weight", "scale", "shape", "expanded"),
    [
        ("x__weight", "x__weight_scale", (), lambda s: s),
        ("x__weight", "x__weight_scale", (1,), lambda s: s),
        ("x__weight", "x__weight_scale", (200,), lambda s: s[:, None]),
        ("x__weight", "x__weight_scale", (200, 1), lambda s: s),
        ("x__weight", "x__weight_scale", (1, 300), lambda s: s),
        ("x__weight", "x__weight_scale_inv", (2, 3), lambda s: s.repeat(128, 0).repeat(128, 1)),
        ("x__weight", "x__weight_scale", (200, 30), lambda s: s.repeat(10, 1)),
        ("x__weight", "x__scale", (2, 3), lambda s: s.repeat(128, 0).repeat(128, 1)),
        ("x__weight", "x__qscale_weight", (), lambda s: s),
    ],
)
def test_scales_of_a_matrix(weight, scale, shape, expanded):
    """Per tensor, row, column, block (the last ones cut off) or group."""
    raw = make(**{weight: ("F8_E4M3", 200, 300), scale: ("F32", *shape)})
    (source,) = logical(raw, FP8).values()
    codes, scales = (tensor.data for tensor in raw.values())
    wanted = values("F8_E4M3")[codes] * np.atleast_2d(expanded(scales))[:200, :300]
    assert source.name == "x.weight" and source.files == ("x.safetensors",)
    assert (read(source) == wanted).all()


@pytest.mark.parametrize(
    ("scale", "shape", "expanded"),
    [
        ("up_scale_inv", (3, 1, 1), lambda s: s),
        ("up_scale", (3,), lambda s: s[:, None, None]),
        ("up_scale", (3, 40), lambda s: s[:, :, None]),
        ("up_scale", (3, 40, 1), lambda s: s),
        ("up_scale", (3, 1, 64), lambda s: s),
        ("up_scale", (3, 64, 1), lambda s: s.swapaxes(1, 2)),  # fbgemm's down_proj
        ("up_weight_scale", (), lambda s: s),
        ("up_scale_inv", (3, 4, 2), lambda s: s.repeat(10, 1).repeat(32, 2)),
        ("up_scale_inv", (1, 40, 1), lambda s: s),
    ],
)
def test_scales_of_fused_experts(scale, shape, expanded):
    """Per tensor, expert, row, column (in either order) or block; and the result turns."""
    raw = make(**{"up": ("F8_E5M2", 3, 40, 64), scale: ("F32", *shape)})
    (source,) = logical(raw, {}).values()
    codes, scales = (tensor.data for tensor in raw.values())
    wanted = values("F8_E5M2")[codes] * expanded(scales)
    assert (read(source) == wanted).all()
    turned = source.open().each(lambda matrix: matrix.turned())
    assert (turned.read(64, 70) == wanted[1].T[:6]).all()


def test_powers_of_two_as_scales():
    """DeepSeek-V3.1's type, and MXFP8, which calls them bytes."""
    for dtype in ("F8_E8M0", "U8"):
        raw = make(x__weight=("F8_E4M3", 8, 64), x__weight_scale_inv=(dtype, 8, 2))
        codes, scales = (tensor.data for tensor in raw.values())
        wanted = values("F8_E4M3")[codes] * values("F8_E8M0")[scales].repeat(32, 1)
        assert (read(logical(raw, {})["x.weight"]) == wanted).all()


def test_integers_of_8_bits():
    """A scale per row."""
    raw = make(x__weight=("I8", 4, 6), x__weight_scale=("F32", 4, 1))
    codes, scales = (tensor.data for tensor in raw.values())
    assert (read(logical(raw, {})["x.weight"]) == codes * scales).all()


@pytest.mark.parametrize(
    ("weights", "scales", "name"),
    [
        (("w_blocks", "U8", 2, 6, 3, 16), ("w_scales", "U8", 2, 6, 3), "w"),
        (("w.weight", "I8", 6, 48), ("w.scale", "F8_E8M0", 6, 3), "w.weight"),
        (("w.weight_packed", "U8", 6, 48), ("w.weight_scale", "U8", 6, 3), "w.weight"),
        (("w13_weight", "U8", 2, 6, 48), ("w13_weight_scale", "U8", 2, 6, 3), "w13_weight"),
    ],
)
def test_mxfp4_in_every_layout(weights, scales, name):
    """gpt-oss, DeepSeek-V4, compressed-tensors, vLLM's fused experts: ggml's type and bytes."""
    raw = make(**{part[0].replace(".", "__"): part[1:] for part in (weights, scales)})
    (source,) = logical(raw, {}).values()
    array = source.open()
    assert source.name == name and source.shape == array.shape == (*scales[2:-1], 96)
    raw_rows = array.raw(0, array.rows)
    assert array.type == "mxfp4" and raw_rows is not None and raw_rows.shape == (array.rows, 51)


def test_mxfp4_packed_along_columns():
    """Experts stored as [inputs, outputs]: turned once more, they have ggml's bytes again."""
    upright = make(w=("U8", 2, 6, 48), w_scale=("U8", 2, 6, 3))
    turned = {k: Held(k, t.dtype, t.data.swapaxes(1, 2)) for k, t in upright.items()}
    wanted, got = logical(upright, {})["w"], logical(turned, {})["w"]
    assert got.shape == (2, 96, 6)
    assert (read(got) == read(wanted).swapaxes(1, 2)).all()
    back = got.open().each(lambda matrix: matrix.turned())
    got_raw, wanted_raw = back.raw(0, 12), wanted.open().raw(0, 12)
    assert got_raw is not None and wanted_raw is not None and (got_raw == wanted_raw).all()


def nvfp4_by_hand(codes, scales, seconds):
    fours = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    numbers = np.stack([fours[codes & 15], fours[codes >> 4]], -1).reshape(*codes.shape[:-1], -1)
    return numbers * (values("F8_E4M3")[scales] * seconds).repeat(16, -1)


@pytest.mark.parametrize(
    ("shape", "second", "expanded"),
    [
        ((8, 32), (), lambda s: s),
        ((8, 32), (1,), lambda s: s),
        ((3, 8, 32), (3,), lambda s: s[:, None, None]),
        ((3, 8, 32), (3, 2), lambda s: s.repeat(4, 1)[:, :, None]),
        ((3, 8, 32), (), lambda s: s),
    ],
)
def test_nvfp4(shape, second, expanded):
    """Second scales per tensor, per expert, and apart for gate and up."""
    raw = make(
        w=("U8", *shape),
        w_weight_scale=("F8_E4M3", *shape[:-1], shape[-1] // 8),
        w_weight_scale_2=("F32", *second),
        w_input_scale=("F32",),
    )
    (source,) = logical(raw, {}).values()
    codes, scales, seconds, _ = (tensor.data for tensor in raw.values())
    assert (read(source) == nvfp4_by_hand(codes, scales, expanded(seconds))).all()
    flipped = {
        name: Held(name, t.dtype, t.data.swapaxes(-1, -2)) if t.data.ndim == len(shape) else t
        for name, t in raw.items()
    }
    assert (read(logical(flipped, {})["w"]) == read(source).swapaxes(-1, -2)).all()


def test_nvfp4_of_compressed_tensors():
    """Packed under another name, and the second scale divides."""
    raw = make(
        x__weight_packed=("U8", 8, 32),
        x__weight_scale=("F8_E4M3", 8, 4),
        x__weight_global_scale=("F32", 1),
        x__input_global_scale=("F32", 1),
    )
    (source,) = logical(raw, {}).values()
    codes, scales, second, _ = (tensor.data for tensor in raw.values())
    fours = nvfp4_by_hand(codes, np.full_like(scales, 0x38), np.float32(1))
    assert source.name == "x.weight"
    assert (read(source) == fours * (values("F8_E4M3")[scales] / second).repeat(16, 1)).all()


def test_mixed_checkpoints_need_no_list_of_modules():
    """Quantized and plain modules side by side; activations' scales are dropped."""
    raw = make(
        a__weight=("F8_E4M3", 4, 4),
        a__weight_scale_inv=("F32", 1, 1),
        a__input_scale=("F32",),
        a__k_scale=("F32",),
        experts__up_proj_activation_scale=("F32", 8),
        norm__weight=("BF16", 4),
        router__weight=("BF16", 8, 4),
        router__scale=("F32", 4),
    )
    found = logical(raw, FP8)
    assert list(found) == ["a.weight", "norm.weight", "router.weight", "router.scale"]


def test_plain_checkpoints_keep_what_looks_like_scales():
    """Only where something is quantized are they known to be activations' scales."""
    raw = make(a__weight=("BF16", 4, 4), a__k_scale=("F32", 4))
    assert list(logical(raw, {})) == list(raw)


def test_files_are_those_of_all_parts():
    """Weights and scales may lie in different shards."""
    raw = make(x__weight=("F8_E4M3", 4, 4), x__weight_scale=("F32",))
    other = raw["x.weight_scale"]
    raw[other.name] = Held(other.name, other.dtype, other.data, "second.safetensors")
    assert logical(raw, {})["x.weight"].files == ("x.safetensors", "second.safetensors")


def test_unscaled_eights():
    """Allowed where nobody said that there are scales, exact in BF16."""
    raw = make(x__weight=("F8_E4M3", 4, 4))
    source = logical(raw, {})["x.weight"]
    assert source.open().type == "bf16"
    assert (read(source) == values("F8_E4M3")[raw["x.weight"].data]).all()


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"x__weight": ("F8_E4M3", 4, 4)}, FP8, "without a scale.*fp8.*is a file missing"),
        ({"x__qweight": ("I32", 4, 4)}, {}, "packed integers"),
        (
            {"x__weight_packed": ("I32", 4, 4)},
            {"text_config": {"quantization_config": {"quant_method": "compressed-tensors"}}},
            r"packed integers \(quant_method: compressed-tensors\).*take the original",
        ),
        ({"x__weight": ("U8", 4, 1), "x__weight__absmax": ("F32", 4)}, {}, "packed integers"),
        ({"x__weight": ("U8", 4, 4), "x__weight_scale": ("F32",)}, {}, "unknown packing"),
        (
            {
                "x__weight": ("I8", 4, 4),
                "x__weight_scale": ("F32",),
                "x__weight_zero_point": ("I8", 1),
            },
            {},
            "zero points",
        ),
        (
            {"x__weight": ("U8", 4, 32), "x__weight_scale": ("F8_E4M3", 4, 4)},
            {},
            "neither weight_scale_2 nor weight_global_scale",
        ),
        ({"x__weight": ("F8_E4M3", 4, 6), "x__weight_scale": ("F32", 6)}, {}, "does not fit"),
        ({"x__weight": ("F8_E4M3", 4, 6), "x__weight_scale": ("F32", 2)}, {}, "does not fit"),
        ({"x__weight": ("F8_E4M3", 4), "x__weight_scale": ("F32", 4)}, {}, "does not fit"),
        # 192 rows in two blocks: of 96, or of 128 and 64?
        ({"x__weight": ("F8_E4M3", 192, 6), "x__weight_scale": ("F32", 2, 1)}, {}, "does not fit"),
        ({"x_blocks": ("U8", 2, 3, 16), "x_scales": ("U8", 2, 4)}, {}, "does not fit"),
        (
            {"x": ("BF16", 2, 32), "x_blocks": ("U8", 2, 1, 16), "x_scales": ("U8", 2, 1)},
            {},
            "twice",
        ),
    ],
)
def test_refusals_say_what_to_do(tensors, config, message):
    """Missing parts, unknown packings, and scales that fit nothing."""
    with pytest.raises(CheckpointError, match=message):
        logical(make(**tensors), config)


_ENDINGS = ["", "_scale", "_scale_inv", "_blocks", "_scales", "_packed", "_scale_2"]
_SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "quantization_config",
                    "quant_method",
                    "weight_block_size",
                    "config_groups",
                    "weights",
                ]
            ),
            inner,
        )
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([f"x.weight{e}" for e in _ENDINGS]),
        st.tuples(st.sampled_from(sorted(DTYPES)), _SHAPES),
        max_size=4,
    ),
    st.dictionaries(st.sampled_from(["quantization_config", "text_config"]), _JSON),
)
def test_nonsense_is_refused(tensors, config):
    """Any types and shapes, any config: an error, or an array of the shape that was promised."""
    raw = {n: Held(n, d, np.zeros(shape, DTYPES[d])) for n, (d, shape) in tensors.items()}
    try:
        for source in logical(raw, config).values():
            if 0 not in source.shape and source.shape:
                array = source.open()
                array.read(0, array.rows)
    except CheckpointError:
        pass
