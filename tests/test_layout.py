"""Places in llama.cpp's words, for files that no plan was made for."""

import pytest

from gemcut.errors import PlanError
from gemcut.runtime.memory.tensors import Placed, homes, layer_of
from gemcut.runtime.placement.layout import layout


def places(*layers, output=None, experts=None):
    """Of a block at each place, its experts elsewhere, and of an output."""
    found = {"token_embd.weight": "cpu", "output.weight": output or layers[-1]}
    for block, place in enumerate(layers):
        found[f"blk.{block}.attn_q.weight"] = place
        found[f"blk.{block}.ffn_up_exps.weight"] = experts or place
    return found


@pytest.mark.parametrize(
    ("where", "gpu_layers", "split", "host"),
    [
        (places("cpu", "cpu"), 0, (), 0),
        (places("cpu", "gpu0"), 2, (), 0),
        (places("gpu0", "gpu0", experts="cpu"), 3, (), 1),
        (places("gpu0", "gpu1"), 3, (1, 2), 0),
        (places("cpu", "gpu0", "gpu1"), 3, (1, 2), 0),
        (places("gpu1", "gpu1"), 3, (0, 3), 0),
        (places("gpu0", "gpu0", output="cpu"), 3, (), 1),
    ],
)
def test_layers_go_to_cards_in_their_order(where, gpu_layers, split, host):
    """The last ones; the host keeps what is named."""
    found = layout(where)
    assert (found.gpu_layers, found.split, len(found.host)) == (gpu_layers, split, host)


def test_cards_without_a_layer_are_told_of():
    assert layout(places("gpu0"), cards=3).split == (2, 0, 0)


def test_a_tensor_of_no_block_may_be_the_first_ones():
    """llama.cpp loads the frequencies of rotary embeddings with the first block."""
    where = places("gpu0", "gpu1") | {"rope_freqs.weight": "gpu0", "output_norm.weight": "gpu1"}
    assert layout(where).host == ()
    with pytest.raises(PlanError, match="rope_freqs.weight is to live at gpu1, its layer at gpu0"):
        layout(where | {"rope_freqs.weight": "gpu1"})


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blk.3.attn_q.weight", 3),
        ("output.weight", 5),
        ("output_norm.weight", 5),
        ("token_embd.weight", None),
        ("per_layer_token_embd.weight", None),
        ("per_layer_model_proj.weight", 0),
        ("rope_factors_long.weight", 0),
        ("token_embd_norm.weight", 0),
    ],
)
def test_layers_of_tensors(name, layer):
    assert layer_of(name, 5, tied=False) == layer


def test_a_tied_embedding_belongs_to_the_output():
    assert layer_of("token_embd.weight", 5, tied=True) == 5


def test_homes_may_be_told():
    """Where overrides name all tensors of a block, these do not show where it is at home."""
    placed = [Placed("blk.0.attn_q.weight", "f16", 1, 1, "cpu", home="gpu0")]
    assert homes(placed, 1) == ("gpu0",)
    where = {"blk.0.attn_q.weight": "cpu", "output.weight": "gpu0"}
    found = layout(where, 1, ("gpu0", "gpu0"), {"blk.0.attn_q.weight"})
    assert (found.gpu_layers, found.host) == (2, ())
