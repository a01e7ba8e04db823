"""The boundary to ggml: against gguf-py's independent code, and what would end the process."""

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as gguf_dequantize
from gguf.quants import quantize as gguf_quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut import ggml
from gemcut.errors import EngineError, PlanError

TYPES = sorted(ggml.types().values(), key=lambda kind: kind.id)
# ggml computes tables for seconds before it encodes these.
QUICK = [kind for kind in TYPES if kind.name not in ("iq1_s", "iq1_m", "iq2_s")]
# What gguf-py's release does not know yet.
NEWER = {"q2_0": (42, 64, 18)}
# What gguf-py decodes.
DECODED = [kind for kind in QUICK if kind.name not in ("q1_0", "q2_0")]
COLUMNS = 512


def rows(seed, count=3, spread=1.0):
    return np.random.default_rng(seed).normal(0, spread, (count, COLUMNS)).astype(np.float32)


def importance(seed):
    return np.exp(np.random.default_rng(seed).standard_normal(COLUMNS)).astype(np.float32)


def test_types_are_those_of_gguf_py():
    """Names, numbers and block sizes agree, and no type that holds weights is left out."""
    no_weights = {"F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K"}
    known = {
        kind.name.lower(): (int(kind), *gguf.GGML_QUANT_SIZES[kind])
        for kind in gguf.GGMLQuantizationType
        if kind.name not in no_weights
    }

    assert known | NEWER == {kind.name: (kind.id, kind.block, kind.size) for kind in TYPES}


def test_a_type_is_found_by_name_in_any_case_and_by_number():
    for kind in TYPES:
        assert kind == ggml.type_named(kind.name.upper()) == ggml.type_with_id(kind.id)
        assert 8 * kind.size == kind.bpw * kind.block


@pytest.mark.parametrize("kind", DECODED, ids=str)
def test_what_is_encoded_decodes_as_gguf_py_decodes_it(kind):
    encoded = ggml.quantize(kind, rows(1), importance(1))

    decoded = ggml.dequantize(kind, encoded, COLUMNS)

    expected = gguf_dequantize(encoded, gguf.GGMLQuantizationType(kind.id))
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("name", "f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 tq1_0 tq2_0".split())
def test_encoding_without_importance_is_gguf_pys(name):
    """Where gguf-py can encode, byte for byte; it knows no importance."""
    kind = ggml.type_named(name)

    expected = gguf_quantize(rows(2), gguf.GGMLQuantizationType(kind.id)).view(np.uint8)

    np.testing.assert_array_equal(ggml.quantize(kind, rows(2)), expected)


@given(st.sampled_from(QUICK), st.lists(st.integers(0, 12)), st.booleans(), st.integers(0, 999))
@settings(max_examples=60)
def test_rows_may_be_encoded_in_pieces(kind, cuts, weighted, seed):
    """However the rows are split over calls, the bytes are the same."""
    weights = importance(seed) if weighted or ggml.needs_importance(kind) else None
    given_rows, edges = rows(seed, 12), sorted({0, *cuts, 12})

    whole = ggml.quantize(kind, given_rows, weights)
    pieces = [
        ggml.quantize(kind, given_rows[start:stop], weights)
        for start, stop in zip(edges, edges[1:], strict=False)
    ]

    assert whole.shape == (12, kind.row_bytes(COLUMNS))
    np.testing.assert_array_equal(whole, np.concatenate(pieces))


@pytest.mark.parametrize("kind", [kind for kind in QUICK if kind.bpw > 4], ids=str)
def test_four_bits_and_more_keep_the_weights(kind):
    """A round trip loses less than 2 % of the energy, and importance moves the loss elsewhere."""
    given_rows, weights = rows(4, 8), importance(4)

    def loss(back):
        return np.square(back - given_rows)

    plain = loss(ggml.dequantize(kind, ggml.quantize(kind, given_rows), COLUMNS))
    weighted = loss(ggml.dequantize(kind, ggml.quantize(kind, given_rows, weights), COLUMNS))

    assert plain.sum() < 0.02 * np.square(given_rows).sum()
    assert (weights * weighted).sum() <= 1.001 * (weights * plain).sum()


def test_no_rows_give_no_bytes():
    for kind in QUICK:
        assert (0, kind.row_bytes(COLUMNS)) == ggml.quantize(kind, rows(5, 0), importance(5)).shape


def test_strided_rows_are_encoded_as_they_read():
    kind, wide = ggml.type_named("q4_k"), np.repeat(rows(6), 2, axis=1)

    np.testing.assert_array_equal(ggml.quantize(kind, wide[:, ::2]), ggml.quantize(kind, rows(6)))


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind.block > 1], ids=str)
def test_rows_that_do_not_fit_are_refused(kind):
    columns = kind.block + kind.block // 2
    with pytest.raises(PlanError, match=f"rows of {columns} do not divide into {kind}'s blocks"):
        ggml.quantize(kind, np.zeros((1, columns), np.float32))
    with pytest.raises(PlanError, match="do not divide"):
        ggml.dequantize(kind, np.zeros((1, kind.size), np.uint8), columns)
    with pytest.raises(PlanError, match=f"rows of {kind.size + 1} bytes, wanted {kind.size}"):
        ggml.dequantize(kind, np.zeros((1, kind.size + 1), np.uint8), kind.block)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e15])
@pytest.mark.parametrize("kind", [kind for kind in QUICK if kind.quantized], ids=str)
def test_weights_that_ggml_would_stumble_over_are_refused(kind, value):
    """Some quantizers end the whole process at such a value; reaching the end is the test."""
    bad = rows(7)
    bad[1, 300] = value

    with pytest.raises(EngineError):
        ggml.quantize(kind, bad, importance(7))
    with pytest.raises(EngineError):
        ggml.quantize(kind, np.full_like(bad, value), importance(7))


@pytest.mark.parametrize("kind", QUICK, ids=str)
@pytest.mark.parametrize("scale", [0, 1e-42, 1e-30, 1e-6, 1e3])
def test_small_and_large_weights_are_encoded(kind, scale):
    """Zeros, denormals and large but sane values do no harm, nor do columns without importance."""
    weights = importance(8)
    for zeros in (slice(0), slice(32, 80), slice(None)):
        weights[zeros] = 0
        encoded = ggml.quantize(kind, rows(8) * np.float32(scale), weights)

        assert np.isfinite(ggml.dequantize(kind, encoded, COLUMNS)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1, 3e38])
def test_an_importance_that_ggml_would_stumble_over_is_refused(value):
    weights = importance(9)
    weights[5] = value
    for kind in QUICK:
        if kind.quantized:
            with pytest.raises(PlanError, match="importance"):
                ggml.quantize(kind, rows(9), weights)


def test_an_importance_of_another_length_is_refused():
    with pytest.raises(PlanError, match=r"importance has shape \(256,\), wanted \(512,\)"):
        ggml.quantize(ggml.type_named("q4_k"), rows(10), np.ones(256, np.float32))


def test_the_lowest_types_need_an_importance():
    needy = {kind.name for kind in TYPES if ggml.needs_importance(kind)}

    assert {"iq2_xxs", "iq2_xs", "iq1_s"} == needy
    with pytest.raises(PlanError, match="iq2_xxs needs an importance matrix"):
        ggml.quantize(ggml.type_named("iq2_xxs"), rows(11))


CARRIED = ["i8", "i16", "i32", "i64", "f64"]


@pytest.mark.parametrize("name", CARRIED)
def test_what_a_file_may_hold_is_not_made_of_weights(name):
    kind = ggml.type_named(name)
    assert kind == ggml.type_with_id(kind.id) and name not in ggml.types()
    with pytest.raises(PlanError, match=f"{name} is no type for weights"):
        ggml.quantize(kind, np.zeros((1, 32), np.float32))


@given(st.text() | st.sampled_from(["q8_k", "q8_1", "q4", "Q4_K_M", "", "q4_k "]))
def test_an_unknown_type_is_a_plan_error(name):
    if name.lower() not in {*ggml.types(), *CARRIED}:
        with pytest.raises(PlanError, match="unknown type.*q4_k"):
            ggml.type_named(name)


@given(st.integers(-(2**31), 2**31))
def test_a_number_without_a_type_is_none(number):
    """ggml itself ends the process for a number past its last type."""
    found = ggml.type_with_id(number)

    assert found in TYPES if number in {kind.id for kind in TYPES} else found is None
