"""Gemma 4: E2B, 31B, 12B and 26B-A4B, and what llama.cpp could not run of them is refused."""

import os

import numpy as np
import pytest

from gemcut import api
from gemcut.errors import CheckpointError
from gemcut.gguf_file import GGUFFile
from gemcut.quantize import stock
from tests import checkpoints, families
from tests.family_checks import check_logits, check_mixtures
from tests.rewriting import configure, converted, variant
from tests.test_stock import NO_ENTRIES, check, hollow

NAMES = ["gemma4_e2b", "gemma4_31b", "gemma4_12b", "gemma4_26b"]
KINDS = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_the_file_is_llama_cpps_converters(name, kind, made):
    made(name, kind)


@pytest.mark.parametrize("name", NAMES)
def test_logits_agree_with_transformers(name, made):
    check_logits(name, made(name, "f32"))


@pytest.mark.parametrize("name", NAMES)
def test_mixtures_are_llama_cpps(name, made):
    check_mixtures(made(name, "bf16"))


@pytest.mark.parametrize(
    ("name", "towers"),
    [("gemma4_e2b", ["audio", "vision"]), ("gemma4_31b", ["vision"]), ("gemma4_12b", None)],
)
def test_towers_are_left_out_and_said_so(name, towers, tmp_path):
    """12B has none, but what turns pictures and sounds into rows of the text model's input."""
    notes = api.open_source(families.build(tmp_path / "model", name)).notes

    assert (towers or ["audio", "vision"]) == sorted(note.split()[1] for note in notes)
    assert all("mmproj" in note for note in notes)


def test_a_block_that_shares_keys_needs_none_of_its_own(made, tmp_path):
    """As newer transformers saves it; the rest is the same, and so are the logits."""

    def without(tensors):
        parts = ("k_proj", "v_proj", "k_norm")
        shared = [f"layers.{layer}.self_attn.{part}." for layer in (3, 4) for part in parts]
        return {k: v for k, v in tensors.items() if not any(part in k for part in shared)}

    output, _ = converted(variant(tmp_path / "model", "gemma4_e2b", without), "f32")

    with GGUFFile(output) as ours, GGUFFile(made("gemma4_e2b", "f32")) as theirs:
        gone = {f"blk.{n}.attn_{part}.weight" for n in (3, 4) for part in ("k", "v", "k_norm")}
        assert gone == set(theirs.tensors) - set(ours.tensors)
        assert all((ours.rows(k) == theirs.rows(k)).all() for k in ours.tensors)
    check_logits("gemma4_e2b", output)


def test_single_experts_make_a_split_file(tmp_path):
    """Where every expert has tensors of its own, gate and up stay apart; the logits are equal."""

    def single(tensors):
        found = {k: v for k, v in tensors.items() if ".experts." not in k}
        for name in tensors.keys() - found.keys():
            kind, stack = tensors[name]
            prefix = name.removesuffix("gate_up_proj").removesuffix("down_proj")
            for number, matrix in enumerate(stack):
                parts = {"down": matrix}
                if name.endswith("gate_up_proj"):
                    parts = dict(zip(("gate", "up"), np.split(matrix, 2), strict=True))
                found |= {f"{prefix}{number}.{k}_proj.weight": (kind, v) for k, v in parts.items()}
        return found

    output, digest = converted(variant(tmp_path / "model", "gemma4_26b", single), "f32")

    assert "tensor blk.0.ffn_gate_exps.weight" in digest
    assert "tensor blk.0.ffn_gate_up_exps.weight" not in digest
    check_logits("gemma4_26b", output)


def test_both_spellings_of_the_full_attention_sizes_are_one(tmp_path):
    older = {"global_head_dim": 64, "num_global_key_value_heads": 1, "per_layer_config": None}

    _, newer = converted(variant(tmp_path / "newer", "gemma4_31b"))

    assert newer == converted(variant(tmp_path / "older", "gemma4_31b", config=older))[1]


def test_full_attention_has_heads_of_its_own_only_where_keys_are_values(tmp_path):
    """As in transformers: the projections of such a checkpoint have the sliding window's number."""
    heads = {"num_global_key_value_heads": 7}

    _, plain = converted(variant(tmp_path / "plain", "gemma4_e2b"))

    assert plain == converted(variant(tmp_path / "other", "gemma4_e2b", config=heads))[1]


REFUSED = {
    "not the last two": (
        {"num_kv_shared_layers": 1},
        "num_kv_shared_layers is 1, and block 3, of which llama.cpp would share the keys",
    ),
    "no such block": (
        {"layer_types": [KINDS[1]] * 3 + KINDS},
        "block 1, of which .* is not the last with sliding_attention before",
    ),
    "a later one": (
        {"layer_types": [*KINDS, KINDS[0], *KINDS], "num_kv_shared_layers": 2},
        "block 2, of which .* is not the last with full_attention before",
    ),
    "too few": ({"num_kv_shared_layers": 4}, "1 blocks with keys of their own; llama.cpp wants 2"),
    "more than all": ({"num_kv_shared_layers": 9}, "0 blocks with keys of their own"),
    "no number": ({"num_kv_shared_layers": "2"}, "num_kv_shared_layers is '2', wanted a positive"),
    "both directions": ({"use_bidirectional_attention": "all"}, "read in one direction"),
    "untied": ({"tie_word_embeddings": False}, "Gemma 4's head is tied"),
    "no inputs": ({"hidden_size_per_layer_input": 0}, "unsupported tensor .*per_layer"),
    "narrow": ({"use_double_wide_mlp": False}, r"layers.3.mlp.*shape \[320, 64\]; .*\[160, 64\]"),
    "experts": (
        {"enable_moe_block": True, "num_experts": 4, "moe_intermediate_size": 32}
        | {"top_k_experts": 2},
        "no tensor layers.0.post_feedforward_layernorm_1.weight",
    ),
}


@pytest.mark.parametrize(("fields", "words"), REFUSED.values(), ids=REFUSED)
def test_what_llama_cpp_cannot_run_is_refused(fields, words, tmp_path):
    folder = families.build(tmp_path / "model", "gemma4_e2b")
    configure(folder / "config.json", fields)

    with pytest.raises(CheckpointError, match=words) as caught:
        api.open_source(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("listed", [7, [1, "2"], [704], [-1], [True]])
def test_suppressed_tokens_are_numbers_of_tokens(listed, tmp_path):
    folder = families.build(tmp_path / "model", "gemma4_12b")
    configure(folder / "generation_config.json", {"suppress_tokens": listed})

    with pytest.raises(CheckpointError, match="suppress_tokens is .*numbers below 704"):
        api.open_source(folder)


def test_suppressed_tokens_may_be_missing(tmp_path):
    folder = families.build(tmp_path / "model", "gemma4_12b")
    configure(folder / "generation_config.json", {"suppress_tokens": None})

    assert "tokenizer.ggml.suppress_tokens" not in api.open_source(folder).metadata


KIND_OF_LAYER = ([KINDS[0]] * 4 + [KINDS[1]]) * 7
LARGE = {
    "global_head_dim": 512,
    "head_dim": 256,
    "hidden_size": 1536,
    "hidden_size_per_layer_input": 256,
    "intermediate_size": 6144,
    "layer_types": KIND_OF_LAYER,
    "num_attention_heads": 8,
    "num_hidden_layers": 35,
    "num_kv_shared_layers": 20,
    "vocab_size": 262144,
}
OWN, INPUTS = 15, 35 * 256


def large_shapes():
    """The tensors of a model of E2B's shape, those that shared blocks have in vain left out."""
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens": (262144, 1536),
        "embed_tokens_per_layer": (262144, INPUTS),
        "norm": (1536,),
        "per_layer_model_projection": (INPUTS, 1536),
        "per_layer_projection_norm": (256,),
    }
    for layer, kind in enumerate(KIND_OF_LAYER):
        head = 256 if kind == KINDS[0] else 512
        wide = 6144 if layer < OWN else 12288
        block: dict[str, tuple[int, ...]] = {
            "mlp.gate_proj": (wide, 1536),
            "mlp.up_proj": (wide, 1536),
        }
        block |= {"mlp.down_proj": (1536, wide), "self_attn.q_norm": (head,)}
        block |= {"self_attn.q_proj": (8 * head, 1536), "self_attn.o_proj": (1536, 8 * head)}
        if layer < OWN:
            block |= {f"self_attn.{part}_proj": (head, 1536) for part in "kv"}
            block |= {"self_attn.k_norm": (head,)}
        block |= {"per_layer_input_gate": (256, 1536), "per_layer_projection": (1536, 256)}
        for norm in ("post_attention", "pre_feedforward", "post_feedforward", "input"):
            block[f"{norm}_layernorm"] = (1536,)
        block["post_per_layer_input_norm"] = (1536,)
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
    found = {f"model.language_model.{name}.weight": shape for name, shape in shapes.items()}
    scalars = {f"model.language_model.layers.{layer}.layer_scalar": (1,) for layer in range(35)}
    return found | scalars


def test_mixtures_are_llama_cpps_in_the_true_size(tmp_path):
    """Of a checkpoint of holes: rows of 8960 numbers, one for every token, among them.

    A float type is taken as the converter does, for the tensors that are never quantized as well.
    """
    folder = families.build(tmp_path / "model", "gemma4_e2b")
    configure(folder / "config.json", LARGE)
    path, shapes = folder / "model.safetensors", large_shapes()
    os.truncate(path, checkpoints.write_safetensors(path, checkpoints.header(shapes, "BF16"), b""))

    model = api.open_source(folder)

    assert len(model.tensors) == len(shapes) + 1  # and the frequencies' divisors
    with hollow(model, tmp_path / "hollow.gguf") as source:
        for mixture in stock.MIXTURES.keys() - {"f32", "f16"}:
            for importance in (None, NO_ENTRIES):
                check(model, source, mixture, importance)
    path.unlink()
