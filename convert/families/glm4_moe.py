"""GLM-4.5 (106B-A12B, 355B-A32B): dense blocks first, then routed experts beside shared ones.

The published checkpoints end with a block that predicts one token further. It is kept, as
llama.cpp's converter keeps it, whose server can draft with it.
"""

from collections.abc import Mapping

from gemcut.convert.families import deepseek_moe as moe
from gemcut.convert.families.common import (
    BLOCK,
    MODEL_FIELDS,
    OUT,
    SIGMOID,
    attention_rules,
    attention_sizes,
    head_size,
    norm,
    optional,
    outer_rules,
)
from gemcut.convert.family import Config, Family, Field, Rule
from gemcut.convert.vocabulary import reader

VOCABULARY = reader(
    "glm4", bos="[gMASK]", eot="<|user|>", unk="<|endoftext|>", eom="<|observation|>"
)

_ROTATED = 0.5  # share of a head, where the config does not say


def sizes(config: Config, layer: int) -> Mapping[str, int]:
    """Named sizes of one block, as the rules' shapes use them."""
    return {
        **attention_sizes(config),
        **moe.sizes(config, layer),
        **moe.predicting_sizes(config, layer),
        "has_biases": int(bool(config.get("attention_bias"))),
        "has_head_norms": int(bool(config.get("use_qk_norm"))),
    }


def _rotated(config: Config) -> int:
    """How much of each head is rotated."""
    share = config.rope().get("partial_rotary_factor", config.get("partial_rotary_factor"))
    return int(head_size(config) * (_ROTATED if share is None else share))


def _biases() -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{BLOCK}self_attn.{name}_proj.bias", f"{OUT}attn_{name}.bias", (size,), "has_biases")
        for name, size in (("q", "queries"), ("k", "keys"), ("v", "keys"))
    )


FAMILY = Family(
    name="glm4moe",
    title="GLM-4.5",
    architectures=("Glm4MoeForCausalLM",),
    model_types=("glm4_moe",),
    prefixes=("model.",),
    skipped={},
    rules=(
        *outer_rules(),
        norm("input_layernorm", "attn_norm"),
        *attention_rules(),
        *_biases(),
        norm("self_attn.q_norm", "attn_q_norm", "head", when="has_head_norms"),
        norm("self_attn.k_norm", "attn_k_norm", "head", when="has_head_norms"),
        norm("post_attention_layernorm", "post_attention_norm"),
        *moe.rules(),
        *moe.predicting_rules(),
    ),
    fields=(
        Field("block_count", "u32", moe.block_count),
        *MODEL_FIELDS,
        Field("rope.dimension_count", "u32", _rotated),
        *moe.FIELDS,
        Field("expert_gating_func", "u32", lambda _: SIGMOID),
        Field("expert_weights_norm", "bool", optional("norm_topk_prob")),
        Field("nextn_predict_layers", "u32", optional("num_nextn_predict_layers")),
    ),
    sizes=sizes,
    vocabulary=VOCABULARY,
    layers=moe.layers,
    inferred=moe.present,
)
