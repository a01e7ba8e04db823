"""A simulated file with rounded activations says what the file itself says (bench/rounding.py)."""

from pathlib import Path

import numpy as np
import pytest

from gemcut import api, ggml
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.gguf_file import GGUFFile
from gemcut.llama import Context, Model
from gemcut.plan import METADATA_KEY, Plan

ROOT = Path(__file__).parent.parent
TOKENS = np.arange(100, 164, dtype=np.int32)
WATCHED = "Qcur-0", "ffn_moe_gate_up-0"


@pytest.fixture
def rounding(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import rounding

    return rounding


@pytest.fixture
def round_trip(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import round_trip

    return round_trip


def products(path, own=None):
    """What the first block's products are in a file."""
    found = {}

    def take(name, tensor):
        if own and own.wants(name, tensor):
            own.on_tensor(name, tensor)
        if name in WATCHED:
            found[name] = tensor.read()

    def wants(name, tensor):
        return name in WATCHED or bool(own and own.wants(name, tensor))

    with Model.load(path, ModelOptions(load_mode="none", repack=False)) as model:
        options = ContextOptions(n_ctx=len(TOKENS), threads=1)
        with Context(model, options, take, wants) as context:
            context.decode(TOKENS)
    return found


def distance(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("kind", ["q4_1", "q4_k_m"])
def test_it_rounds_as_the_kernels_do(kind, checkpoint, cut, rounding, round_trip, tmp_path):
    """But for Q8_1's sums, of 16 bits; and what is rounded another way for them later."""
    path, model = cut(kind), api.open_source(checkpoint)
    with GGUFFile(path) as file:
        plan = Plan.from_json(file.metadata[METADATA_KEY].data, str(path))
    returned = tmp_path / "returned.gguf"
    round_trip.write_returned(model, plan, {}, returned, threads=1)

    real, plain = products(path), products(returned)
    simulated = products(returned, rounding.Products.of(plan))

    assert real.keys() == set(WATCHED)
    for name, values in real.items():
        assert distance(simulated[name], values) < 0.3 * distance(plain[name], values)


def test_every_expert_reads_rows_as_its_own_type_wants(rounding):
    random = np.random.default_rng(0)
    matrices = random.standard_normal((3, 8, 256), np.float32)
    rows = random.standard_normal((5, 1, 256), np.float32)
    ids = np.array([[0, 2], [2, 1], [1, 0], [0, 1], [2, 0]], np.int32)
    kinds = [ggml.type_named(name) for name in ("f32", "q4_0", "q4_k")]

    found = rounding.routed(matrices, kinds, rows, ids)

    for token, used in np.ndindex(ids.shape):
        expert = ids[token, used]
        seen = rounding.rounded(kinds[expert], rows[token, 0])
        assert found[token, used] == pytest.approx(matrices[expert] @ seen, abs=1e-4)


def test_blocks_of_256_round_to_127_steps(rounding):
    """The largest number stays, zeros stay zeros, nothing moves by more than half a step."""
    rows = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    rows[1] = 0

    found = rounding.rounded(ggml.type_named("iq3_s"), rows)

    blocks, seen = rows.reshape(-1, 256), found.reshape(-1, 256)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    assert np.abs(seen).max(axis=1) == pytest.approx(largest[:, 0])
    assert (np.abs(seen - blocks) <= largest / 254 * 1.001).all()
