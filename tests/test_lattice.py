"""What was trained for Q4_0 keeps its lattice, whatever k its extremum has; nothing else does."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut import api, ggml
from gemcut.api import Target
from gemcut.errors import EngineError
from gemcut.gguf_file import GGUFFile
from gemcut.lattice import CLAIMED, encode_q4_0, on_q4_0_lattice
from gemcut.quantize.local_error import local_errors
from gemcut.quantize.measure import Request
from gemcut.quantize.subject import Sampling
from gemcut.quantize.tensor_errors import subjects
from gemcut.sensitivity import Sensitivity
from tests import checkpoints, oracle

Q4_0 = ggml.type_named("q4_0")


def bf16(rows: np.ndarray) -> np.ndarray:
    """Rounded to BF16, to the nearest."""
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def round_trip(kind, rows):
    """Values after ggml's encoding and decoding."""
    named = ggml.type_named(kind)
    return ggml.dequantize(named, ggml.quantize(named, rows), rows.shape[1])


def trained(rows: np.ndarray, top: int = 7) -> np.ndarray:
    """Rows as training for Q4_0 leaves them, with a d that puts the extremum at +-`top`."""
    groups = rows.reshape(-1, 32)
    scales = bf16(np.abs(groups).max(axis=1)[:, None] / top)
    levels = np.clip(np.rint(groups / np.where(scales, scales, 1)), -8, 7)
    return bf16(levels * scales).reshape(rows.shape)


def error(rows: np.ndarray, encoded: ggml.Bytes) -> float:
    """Relative squared error, decoded by gguf-py."""
    back = gguf.quants.dequantize(encoded, gguf.GGMLQuantizationType.Q4_0)
    return float(np.square(back - rows).sum() / np.square(rows).sum())


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.floats(1e-3, 1e3))
def test_the_lattice_is_kept(seed, top, scale):
    """Up to the rounding of d to F16 and of the source to BF16."""
    rows = trained(scale * np.random.default_rng(seed).standard_normal((8, 96)), top)

    assert on_q4_0_lattice(rows) == 1
    assert error(rows, encode_q4_0(rows)) < 5e-6


@given(st.integers(0, 2**32 - 1))
def test_what_ggml_finds_is_found(seed):
    """Where the extremum is at -8, the same k; random weights lose no more than ggml's."""
    rows = np.random.default_rng(seed).standard_normal((8, 96), np.float32)
    back = round_trip("q4_0", rows)

    theirs, ours = ggml.quantize(Q4_0, back), encode_q4_0(back)

    blocks = (theirs.reshape(-1, 18), ours.reshape(-1, 18))
    assert (blocks[0][:, 2:] == blocks[1][:, 2:]).all()
    assert error(rows, encode_q4_0(rows)) <= 1.01 * error(rows, ggml.quantize(Q4_0, rows))


def test_ggml_leaves_a_lattice_whose_extremum_is_elsewhere():
    """Which is what this is for: a thousand times the error."""
    rows = trained(np.random.default_rng(0).standard_normal((16, 256)))

    assert error(rows, ggml.quantize(Q4_0, rows)) > 1000 * error(rows, encode_q4_0(rows))


def test_zeros_and_damage():
    zeros = np.zeros((2, 64), np.float32)
    assert (gguf.quants.dequantize(encode_q4_0(zeros), gguf.GGMLQuantizationType.Q4_0) == 0).all()
    for value, words in ((np.nan, "NaN"), (np.inf, "infinite"), (1e9, "too large")):
        with pytest.raises(EngineError, match=words):
            encode_q4_0(np.full((1, 32), value, np.float32))


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-6, 1e3))
def test_random_weights_are_on_no_lattice(seed, scale):
    """The chance is below 1e-37 a group, so one is not met."""
    random = np.random.default_rng(seed)
    rows = [random.standard_normal((64, 64)), random.uniform(-1, 1, (64, 64))]

    for values in rows:
        assert on_q4_0_lattice(bf16(scale * values)) == 0


@given(seed=st.integers(0, 2**32 - 1))
def test_what_q4_0_made_is_on_its_lattice(seed):
    """As ggml decodes it, and stored as BF16 or F16."""
    rows = np.random.default_rng(seed).standard_normal((16, 96), np.float32) / 50
    back = round_trip("q4_0", rows)

    for stored in (back, bf16(back), back.astype(np.float16).astype(np.float32)):
        assert on_q4_0_lattice(stored) == 1


@pytest.mark.parametrize("kind", "q4_1 q5_0 iq4_nl mxfp4 q4_k q6_k q8_0 q2_k q3_k".split())
def test_other_lattices_are_not_claimed(kind):
    rows = np.random.default_rng(0).standard_normal((64, 256), np.float32) / 50

    assert on_q4_0_lattice(bf16(round_trip(kind, rows))) < CLAIMED / 5


def test_zeros_odd_rows_and_damaged_groups_prove_nothing():
    rows = round_trip("q4_0", np.random.default_rng(0).standard_normal((4, 64), np.float32))

    assert on_q4_0_lattice(np.zeros((4, 64), np.float32)) == 0
    assert on_q4_0_lattice(rows[:, :48]) == 0
    assert on_q4_0_lattice(np.concatenate([rows, np.zeros((4, 64), np.float32)])) == 1
    assert on_q4_0_lattice(np.full((1, 32), np.nan, np.float32)) == 0


def test_a_checkpoint_on_the_lattice_is_told_from_others(checkpoint, tmp_path, monkeypatch):
    """By role, from a few rows."""
    plain = checkpoints.tensors
    shipped = checkpoints.build(tmp_path / "plain", checkpoint)

    def on_lattice(recipe):
        return {
            name: bf16(round_trip("q4_0", array.reshape(-1, array.shape[-1]))).reshape(array.shape)
            if "experts" in name and array.shape[-1] % 32 == 0 and array.ndim > 1
            else array
            for name, array in plain(recipe).items()
        }

    monkeypatch.setattr(checkpoints, "tensors", on_lattice)
    trained = api.inspect_source(checkpoints.build(tmp_path / "qat", checkpoint))

    assert {role for role, share in trained.lattice.items() if share} == {
        "experts_gate_up",
        "experts_down",
    }
    assert trained.lattice["experts_down"] == 1
    assert not any(api.inspect_source(shipped).lattice.values())


@pytest.fixture(scope="module")
def qat(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose experts were trained for Q4_0, and nothing else of it."""
    plain = checkpoints.tensors

    def some_trained(recipe):
        return {
            name: trained(a.reshape(-1, a.shape[-1])).reshape(a.shape) if "experts." in name else a
            for name, a in plain(recipe).items()
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "tensors", some_trained)
        return checkpoints.build(tmp_path_factory.mktemp("qat") / "model", checkpoint)


def test_only_what_is_on_the_lattice_is_written_otherwise_than_by_llama_cpp(qat, tmp_path):
    model = api.open_source(qat)
    api.convert_checkpoint(model, tmp_path / "bf16.gguf")
    oracle.quantize(tmp_path / "bf16.gguf", tmp_path / "theirs.gguf", "q4_0")

    api.quantize_model(model, tmp_path / "ours.gguf", Target("Q4_0"))

    with GGUFFile(tmp_path / "ours.gguf") as ours, GGUFFile(tmp_path / "theirs.gguf") as theirs:
        for tensor in model.tensors:
            same = (ours.rows(tensor.name) == theirs.rows(tensor.name)).all()
            assert same != ("exps.weight" in tensor.name), tensor.name
            if not same:
                rows = tensor.read(0, tensor.rows)
                assert error(rows, ours.rows(tensor.name)) < 5e-6
                assert error(rows, theirs.rows(tensor.name)) > 1e-3


def test_measuring_knows_the_lattice(qat, tmp_path):
    """Q4_0 loses next to nothing of what was trained for it, and other types do."""
    model = api.open_source(qat)

    request = Request(types=["q4_0", "q4_1", "q5_0"])
    found = api.measure_sensitivity(model, tmp_path / "s.json", request=request)

    for name, tensor in found.tensors.items():
        on = "exps" in name
        assert tensor.lattice == on
        assert (tensor.errors["q4_0"].mean < 5e-6) == on
        assert tensor.errors["q5_0"].mean > 1e-4
    assert found == Sensitivity.read(tmp_path / "s.json")


def test_the_measured_error_is_that_of_the_written_file(qat, tmp_path):
    model = api.open_source(qat)
    api.quantize_model(model, tmp_path / "q4_0.gguf", Target("q4_0", pure=True))

    with GGUFFile(tmp_path / "q4_0.gguf") as file:
        for each in subjects(model, None, ["q4_0"]):
            found = local_errors(each, Sampling(10**9, 10**9)).errors[""]["q4_0"]
            rows = each.tensor.read(0, each.tensor.rows)
            assert found.mean == pytest.approx(error(rows, file.rows(each.tensor.name)), rel=1e-5)
