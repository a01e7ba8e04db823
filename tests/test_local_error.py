"""What a tensor loses in a type, sampled: right on average, as uncertain as it says."""

from dataclasses import replace
from math import prod
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut import api, ggml
from gemcut.convert.lazy import Array, Stored
from gemcut.convert.model import Model, Tensor
from gemcut.errors import EngineError
from gemcut.quantize.candidates import measured, paddable
from gemcut.quantize.importance import importance_for
from gemcut.quantize.local_error import local_errors
from gemcut.quantize.statistics import Entry, Statistics
from gemcut.quantize.subject import Sampling, subject
from gemcut.quantize.tensor_errors import expert_mass, subjects
from tests.measuring import CHEAP, uneven

ALL = Sampling(rows=10**9, first=10**9)
EVEN = 0.02  # of the mass: what any expert is given


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Model:
    """The demo's checkpoint."""
    return api.open_source(checkpoint)


@pytest.fixture(scope="module")
def statistics(model: Model) -> Statistics:
    """Activations; one expert was never reached."""
    return uneven(model)


def made(array: np.ndarray, name: str = "blk.0.ffn_down_exps.weight") -> Tensor:
    """A tensor of these values."""
    values = np.ascontiguousarray(array, np.float32)
    matrices = values.reshape(-1, *values.shape[-2:])
    return Tensor(
        name, values.shape, "f32", lambda: Array(values.shape, tuple(map(Stored, matrices)))
    )


def random_tensor(*shape: int, name: str = "blk.0.ffn_down_exps.weight", seed: int = 0) -> Tensor:
    """A tensor of random values, whose rows are of various lengths."""
    random = np.random.default_rng(seed)
    scale = np.exp(0.3 * random.standard_normal((*shape[:-1], 1)))
    return made(scale * random.standard_normal(shape), name)


def uniform(tensor: Tensor) -> np.ndarray:
    """A mass that is the same for all experts."""
    return np.full(tensor.matrices, 1 / tensor.matrices)


def test_sampled_errors_are_as_far_off_as_they_say(model, statistics):
    """Over all tensors and types, deviations in units of the standard error are those of chance."""
    deviations = []
    for each in subjects(model, statistics, CHEAP[:4]):
        exact = local_errors(each, ALL)
        for seed in range(2):
            sampled = local_errors(each, Sampling(seed=seed))
            for part, errors in sampled.errors.items():
                for name, error in errors.items():
                    true = exact.errors[part][name]
                    assert true.se == 0
                    if error.se:
                        deviations.append((error.mean - true.mean) / error.se)
    found = np.array(deviations)

    assert len(found) > 300
    assert 0.92 < (np.abs(found) < 2).mean() < 0.98
    assert 0.9 < found.std() < 1.15
    assert abs(found.mean()) < 0.15


@pytest.mark.parametrize("kind", ["q4_0", "q5_1", "q4_k", "q6_k"])
def test_exhaustive_errors_are_those_of_gguf_pys_decoder(kind, model, statistics):
    """Sums over all rows, weighted by column and by expert, computed here anew."""
    tensor = next(t for t in model.tensors if t.name == "blk.2.ffn_gate_up_exps.weight")
    importance = importance_for(statistics, [tensor])[tensor.name]
    rows = tensor.read(0, tensor.rows).reshape(tensor.shape)
    counts = statistics.entries[tensor.name].counts.astype(np.float64)
    encoded = [
        ggml.quantize(ggml.type_named(kind), each, weights)
        for each, weights in zip(rows, importance, strict=True)
    ]
    back = gguf.quants.dequantize(np.stack(encoded), gguf.GGMLQuantizationType[kind.upper()])
    mass = EVEN / len(counts) + (1 - EVEN) * counts / counts.sum()
    weights = mass[:, None, None] * importance[:, None, :].astype(np.float64)
    wanted = (weights * (back.astype(np.float64) - rows) ** 2).sum() / (weights * rows**2).sum()

    (each,) = subjects(replace(model, tensors=(tensor,)), statistics, [kind])
    found = local_errors(each, ALL).errors[""][kind]

    assert found.mean == pytest.approx(wanted, rel=1e-5)
    assert found.se == 0


def test_the_errors_of_gate_and_up_add_up(model, statistics):
    for each in subjects(model, statistics, ["q4_0", "q2_k"]):
        if "ffn_gate_up_exps" in each.tensor.name:
            errors = local_errors(each, Sampling()).errors
            assert {"", "gate", "up"} == errors.keys()
            for kind, whole in errors[""].items():
                parts = errors["gate"][kind].mean + errors["up"][kind].mean
                assert whole.mean == pytest.approx(parts, rel=1e-12)


@pytest.mark.parametrize("kind", ["q4_k", "q6_k", "iq4_xs", "q2_k", "iq2_xxs", "iq3_xxs"])
def test_a_padded_candidate_is_the_padded_tensor(kind):
    """Columns of zeros without importance, and the same error as of a tensor that has them."""
    tensor = random_tensor(3, 16, 704)
    importance = np.exp(np.random.default_rng(1).standard_normal((3, 704))).astype(np.float32)
    wide = made(np.pad(tensor.read(0, 48), ((0, 0), (0, 64))).reshape(3, 16, 768))
    weights = np.pad(importance, ((0, 0), (0, 64)))

    padded = local_errors(subject(tensor, importance, uniform(tensor), [kind]), ALL)
    found = local_errors(subject(wide, weights, uniform(wide), [kind]), ALL)

    assert padded.errors[""][f"{kind}@768"].mean == pytest.approx(found.errors[""][kind].mean)
    assert kind not in padded.errors[""]


def test_candidates_fit_the_rows_and_the_source():
    """Blocks divide rows; nothing is larger than the source; importance is there where needed."""
    plain = {str(each) for each in measured(704, "bf16", False, False)}
    padded = {str(each) for each in measured(704, "bf16", True, True)}
    small = {str(each) for each in measured(2816, "q8_0", True, True)}

    assert {"q4_0", "q5_1", "iq4_nl", "mxfp4", "q2_0", "q8_0", "bf16", "f16"} <= plain
    assert not any(ggml.type_named(name).block == 256 for name in plain)
    assert {f"{name}@768" for name in ("q4_k", "iq2_xxs", "iq1_s", "iq1_m", "iq3_s")} <= padded
    assert plain < padded
    assert "q8_0" in small and not {"bf16", "f16", "f32", "q4_k@2816"} & small
    assert paddable("blk.0.ffn_down_exps.weight") and paddable("blk.0.ffn_down.weight")
    assert not paddable("blk.0.attn_output.weight") and not paddable("blk.0.ffn_up.weight")


def test_the_sources_own_type_loses_nothing(model):
    """And a 16-bit type of another kind what it rounds."""
    tensor = random_tensor(1, 32, 64)

    errors = local_errors(subject(tensor, None, uniform(tensor)), ALL).errors[""]

    assert errors["f32"].mean == 0
    assert 0 < errors["f16"].mean < errors["bf16"].mean < 1e-5


def test_each_experts_share_of_the_error(model, statistics):
    """Of all rows, that of the energy, and some of the rows' own; of what is drawn, nearly."""
    tensor = next(t for t in model.tensors if t.name == "blk.2.ffn_gate_up_exps.weight")
    importance = importance_for(statistics, [tensor])[tensor.name].astype(np.float64)
    rows = tensor.read(0, tensor.rows).reshape(tensor.shape).astype(np.float64)
    energies = (importance[:, None] * rows**2).sum(axis=(1, 2)) * expert_mass(statistics, tensor)
    counts = statistics.entries[tensor.name].counts.astype(np.float64)
    routed = EVEN / len(counts) + (1 - EVEN) * counts / counts.sum()
    wanted = energies**0.75 * routed**0.25
    wanted /= wanted.sum()

    (each,) = subjects(replace(model, tensors=(tensor,)), statistics, ["q8_0"])
    (alone,) = subjects(replace(model, tensors=(tensor,)), None, ["q8_0"])

    assert local_errors(each, ALL).experts == pytest.approx(wanted, rel=1e-3)
    assert np.abs(local_errors(each, Sampling()).experts - wanted).sum() < 0.3
    assert each.routed == pytest.approx(counts / counts.sum(), rel=1e-3)
    assert local_errors(alone, Sampling(32, 32)).experts == alone.routed == ()


def test_a_heavily_routed_expert_counts_for_more():
    """One expert of long rows in a coarse grid, another of exact zeros and ones."""
    rows = np.random.default_rng(0).standard_normal((2, 64, 32))
    rows[1] = np.sign(rows[1])
    tensor = made(rows)

    def error(share: float) -> float:
        each = subject(tensor, None, np.array([share, 1 - share]), ["q8_0"])
        return local_errors(each, ALL).errors[""]["q8_0"].mean

    assert 0 < error(0.1) < error(0.5) < error(0.9) < error(1.0)
    draws = subject(tensor, None, np.array([0.9, 0.1]), ["q8_0"]).strata.counts(32)
    assert [29, 3] == draws.tolist()


def test_more_rows_are_drawn_where_errors_differ_more():
    """A second sample is as large as the first one says is needed."""
    rows = np.random.default_rng(0).standard_normal((4096, 32))
    rows[1::2] = 1  # which Q4_0 holds exactly
    tensor = made(rows)
    each = subject(tensor, None, uniform(tensor), ["q4_0"])

    rough = local_errors(each, Sampling(rows=32)).errors[""]["q4_0"]
    fine = local_errors(each, Sampling(rows=4096)).errors[""]["q4_0"]

    assert rough.se > 0.06 * rough.mean
    assert 0.02 * fine.mean < fine.se < 0.045 * fine.mean


@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=6).filter(any),
    st.integers(1, 40),
    st.integers(1, 300),
)
def test_every_expert_gives_at_least_two_rows(masses, height, rows):
    """Or all that it has; and no more than it has."""
    tensor = random_tensor(len(masses), height, 32)
    each = subject(tensor, None, np.array(masses) / sum(masses), ["q8_0"])

    counts = each.strata.counts(rows)

    assert ((counts >= min(2, height)) & (counts <= height)).all()
    assert rows < tensor.rows or (counts == height).all()


@pytest.mark.parametrize("shape", [(4, 32), (1, 1, 32), (3, 1, 64), (2, 2, 32)])
def test_the_smallest_tensors_are_measured_whole(shape):
    tensor = random_tensor(*shape)

    error = local_errors(subject(tensor, None, uniform(tensor), ["q4_0"]), Sampling()).errors[""]

    assert error["q4_0"].mean > 0
    assert prod(shape[:-1]) > 32 or error["q4_0"].se == 0


def test_a_tensor_of_zeros_loses_nothing():
    tensor = made(np.zeros((2, 8, 32)))

    errors = local_errors(subject(tensor, None, uniform(tensor), CHEAP), Sampling()).errors[""]

    assert {(0.0, 0.0)} == {(error.mean, error.se) for error in errors.values()}


def test_weights_that_are_no_numbers_are_refused():
    tensor = made(np.full((4, 32), np.nan))

    with pytest.raises(EngineError, match="blk.0.ffn_down_exps.weight: the weights hold NaN"):
        local_errors(subject(tensor, None, uniform(tensor), ["q4_0"]), Sampling())


def test_the_weights_of_the_router_count_squared():
    """An expert's output is multiplied by its gate weight, and its squared error by the square."""
    tensor = random_tensor(2, 4, 32)
    sums, counts = np.ones((2, 32), np.float32), np.array([10, 30], np.float32)
    routed = Statistics({tensor.name: Entry(sums, counts)})
    gated = Statistics({tensor.name: Entry(sums, counts, np.array([5, 3], np.float32))})

    assert [0.5, 0.5] == expert_mass(None, tensor).tolist()
    assert expert_mass(routed, tensor) == pytest.approx((1 - EVEN) * np.array([0.25, 0.75]) + 0.01)
    # 10 rows at a half, 30 rows at a tenth
    mass = (1 - EVEN) * np.array([2.5, 0.3]) / 2.8 + 0.01
    assert expert_mass(gated, tensor) == pytest.approx(mass)


def test_counts_and_gates_of_any_size_give_shares(model):
    """They come out of a file; float32 would overflow on the way."""
    tensor = next(each for each in model.tensors if "exps" in each.name)
    sums = np.ones((tensor.matrices, tensor.columns), np.float32)
    large = np.full(tensor.matrices, 3e38, np.float32)
    for counts, gates in ((large, None), (np.ones_like(large), large), (large, large)):
        statistics = Statistics({tensor.name: Entry(sums, counts, gates)})
        assert np.allclose(expert_mass(statistics, tensor), 1 / tensor.matrices)
