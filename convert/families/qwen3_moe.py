"""Qwen3-MoE (30B-A3B, 235B-A22B): norms on every head of queries and keys, routed experts only."""

from collections.abc import Mapping

from gemcut.convert.families.common import (
    BLOCK,
    MODEL_FIELDS,
    OUT,
    attention_rules,
    attention_sizes,
    expert_rules,
    expert_sizes,
    norm,
    outer_rules,
)
from gemcut.convert.family import Config, Family, Field, Rule
from gemcut.convert.vocabulary import reader
from gemcut.errors import CheckpointError


def sizes(config: Config, layer: int) -> Mapping[str, int]:
    """Named sizes of one block, as the rules' shapes use them."""
    return {**attention_sizes(config), **expert_sizes(config)}


def _block_count(config: Config) -> int:
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise CheckpointError(
            "config.json: some blocks have no experts (mlp_only_layers, decoder_sparse_step); "
            "llama.cpp's qwen3moe wants them in every block"
        )
    return config.positive("num_hidden_layers")


FAMILY = Family(
    name="qwen3moe",
    title="Qwen3-MoE",
    architectures=("Qwen3MoeForCausalLM",),
    model_types=("qwen3_moe",),
    prefixes=("model.",),
    skipped={},
    rules=(
        *outer_rules(),
        norm("input_layernorm", "attn_norm"),
        *attention_rules(),
        norm("self_attn.q_norm", "attn_q_norm", "head"),
        norm("self_attn.k_norm", "attn_k_norm", "head"),
        norm("post_attention_layernorm", "ffn_norm"),
        Rule(BLOCK + "mlp.gate.weight", OUT + "ffn_gate_inp.weight", ("experts", "hidden")),
        *expert_rules(),
    ),
    fields=(
        Field("block_count", "u32", _block_count),
        *MODEL_FIELDS,
        Field("expert_feed_forward_length", "u32", lambda c: c.positive("moe_intermediate_size")),
    ),
    sizes=sizes,
    vocabulary=reader("qwen2"),
)
