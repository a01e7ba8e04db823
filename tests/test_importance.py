"""Importance out of statistics: shrinkage, fused and divided tensors, experts without a row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut import api, ggml
from gemcut.errors import PlanError
from gemcut.gguf_file import TensorInfo
from gemcut.quantize.importance import SHRINKAGE, importance_for
from gemcut.quantize.statistics import Entry, Statistics, write_statistics
from tests import oracle
from tests.test_statistics import EXPERTS, PLAIN, entry


def tensor(name, *shape) -> TensorInfo:
    return TensorInfo(name, shape, ggml.type_named("f32"))


def of(statistics, *shape, name=EXPERTS, **options):
    return importance_for(statistics, [tensor(name, *shape)], **options)[name]


def test_a_plain_matrix_gets_its_mean_squares():
    """Whatever the shrinkage: it has no other experts to be drawn to."""
    given_entry = entry(columns=64)
    statistics = Statistics({PLAIN: given_entry})

    for shrinkage in (0, SHRINKAGE, 1e6):
        found = of(statistics, 16, 64, name=PLAIN, shrinkage=shrinkage)
        np.testing.assert_allclose(found, given_entry.sums / given_entry.counts[0], rtol=1e-6)


@given(st.integers(0, 99), st.floats(0, 1e4))
def test_experts_are_drawn_towards_their_layers_mean(seed, k):
    """By the rule, and never beyond it: between the expert's own mean and the layer's."""
    some = entry(4, 8, seed)
    found = of(Statistics({EXPERTS: some}), 4, 16, 8, shrinkage=k)

    own = some.sums / some.counts[:, None]
    mean = some.sums.sum(axis=0) / some.counts.sum()
    rule = (some.sums + k * mean) / (some.counts[:, None] + k)
    np.testing.assert_allclose(found, rule, rtol=1e-5)
    low, high = np.minimum(own, mean), np.maximum(own, mean)
    assert (found >= low * (1 - 1e-5)).all() and (found <= high * (1 + 1e-5)).all()


@pytest.mark.parametrize("shrinkage", [0, SHRINKAGE])
def test_an_expert_without_a_row_has_the_layers_mean(shrinkage):
    some = entry(4, 8)
    some.counts[2] = 0  # its sums are of no meaning then

    found = of(Statistics({EXPERTS: some}), 4, 16, 8, shrinkage=shrinkage)

    rest = [0, 1, 3]
    mean = some.sums[rest].sum(axis=0) / some.counts.sum()
    np.testing.assert_allclose(found[2], mean, rtol=1e-5)


def test_ones_are_there_for_comparison():
    """What llama-quantize makes of the file."""
    some = entry(4, 8)
    some.counts[2] = 0

    found = of(Statistics({EXPERTS: some}), 4, 16, 8, ones=True)

    np.testing.assert_array_equal(found[2], np.ones(8))
    np.testing.assert_allclose(found[1], some.sums[1] / some.counts[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("has", "wants"),
    [
        ("blk.0.ffn_gate_up_exps.weight", "blk.0.ffn_gate_exps.weight"),
        ("blk.0.ffn_gate_up_exps.weight", "blk.0.ffn_up_exps.weight"),
        ("blk.0.ffn_gate_exps.weight", "blk.0.ffn_gate_up_exps.weight"),
        ("blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_up_exps.weight"),
        ("blk.0.attn_q.weight", "blk.0.attn_qkv.weight"),
        ("token_embd.weight", "output.weight"),
        ("output.weight", "token_embd.weight"),  # of a model without an output of its own
    ],
)
def test_tensors_with_one_input_share_their_statistics(has, wants):
    """Fused or divided, and the head under either name."""
    some = entry(4, 8)

    np.testing.assert_allclose(
        of(Statistics({wants: some}), 4, 16, 8, name=wants),
        of(Statistics({has: some}), 4, 16, 8, name=wants),
    )


def test_an_embedding_that_is_only_looked_up_gets_nothing_of_the_output():
    statistics = Statistics({"output.weight": entry(columns=8)})

    found = importance_for(
        statistics, [tensor("output.weight", 4, 8), tensor("token_embd.weight", 4, 8)]
    )

    assert ["output.weight"] == list(found)


def test_another_models_statistics_are_refused():
    statistics = Statistics({EXPERTS: entry(4, 8)})
    with pytest.raises(PlanError, match=r"shape \[4, 8\], wanted \[8, 8\].*another model"):
        of(statistics, 8, 16, 8)
    with pytest.raises(PlanError, match="none of this model's tensors"):
        of(statistics, 4, 16, 8, name="blk.9.ffn_down_exps.weight")
    with pytest.raises(PlanError, match="nothing but zeros"):
        zeros = Entry(np.zeros((4, 8), np.float32), np.ones(4, np.float32))
        of(Statistics({EXPERTS: zeros}), 4, 16, 8)


def test_a_tensor_of_zeros_counts_as_one_without_statistics():
    zeros = Entry(np.zeros((1, 8), np.float32), np.ones(1, np.float32))
    statistics = Statistics({EXPERTS: entry(4, 8), PLAIN: zeros})

    found = importance_for(statistics, [tensor(EXPERTS, 4, 16, 8), tensor(PLAIN, 4, 8)])

    assert [EXPERTS] == list(found)


@pytest.mark.parametrize("ones", [True, False], ids=["ones", "shrunk"])
def test_a_cut_with_it_is_llama_cpps(ones, checkpoint, bf16, tmp_path):
    """Byte for byte, with experts that were never reached, and statistics for the embedding."""
    model = api.open_source(checkpoint)
    entries = {t.name: entry(t.matrices, t.columns, 3) for t in model.tensors if not t.kept}
    for name, each in entries.items():
        if name.endswith("_exps.weight"):
            each.counts[::3] = 0
    write_statistics(tmp_path / "i.gguf", Statistics(entries))
    importance = importance_for(Statistics(entries), model.tensors, ones=ones)
    if not ones:
        loaded = api.load_importance(tmp_path / "i.gguf", model)
        assert loaded is not None
        for name, weights in importance.items():
            np.testing.assert_array_equal(weights, loaded[name])

    oracle.quantize(bf16, tmp_path / "theirs.gguf", "q4_0", importance)
    api.quantize_model(model, tmp_path / "ours.gguf", api.Target("q4_0"), importance, threads=1)

    oracle.assert_same(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
