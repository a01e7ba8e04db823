"""Qwen3.5-MoE (35B-A3B, 122B-A10B, 397B-A17B): gated delta nets and gated attention by turns.

Every block has routed experts, and one shared expert with a gate. Norms are stored as differences
from 1, but for the one inside the delta net. There, several value heads share a key head, and
llama.cpp wants them in another order. The layer for speculative decoding becomes one more block,
whose number is the size "nextn_block".
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gemcut.convert.families.common import (
    BLOCK,
    MODEL_FIELDS,
    OUT,
    attention_sizes,
    dense_rules,
    expert_rules,
    expert_sizes,
    head_size,
    norm,
    outer_rules,
)
from gemcut.convert.family import Config, Family, Field, Rule
from gemcut.convert.source import Source
from gemcut.convert.transforms import minus_exp, plus_one, then, tiled, tiled_columns
from gemcut.convert.vocabulary import reader
from gemcut.errors import CheckpointError

_SECTIONS = [11, 11, 10]  # of the multimodal rotation, where the config does not say
_ROTATED = 0.25  # of each head, likewise
_INTERVAL = 4  # every how many blocks there is full attention, likewise


def sizes(config: Config, layer: int) -> Mapping[str, int]:
    """Named sizes of one block, as the rules' shapes use them."""
    attention = attention_sizes(config)
    linear = _is_linear(config)[layer]
    return {
        **attention,
        **expert_sizes(config),
        "twice_hidden": 2 * attention["hidden"],
        "one": 1,
        "attention": int(not linear),
        "linear": int(linear),
        "nextn": _nextn(config),
        "nextn_block": config.positive("num_hidden_layers"),
        "queries_and_gates": 2 * attention["queries"],
        "shared": config.positive("shared_expert_intermediate_size"),
        **_delta_net_sizes(config),
    }


def _delta_net_sizes(config: Config) -> Mapping[str, int]:
    key_heads = config.positive("linear_num_key_heads")
    key_head = config.positive("linear_key_head_dim")
    value_heads = config.positive("linear_num_value_heads")
    value_head = config.positive("linear_value_head_dim")
    keys, values = key_heads * key_head, value_heads * value_head
    return {
        "kernel": config.positive("linear_conv_kernel_dim"),
        "key_head": key_head,
        "key_heads": key_heads,
        "value_head": value_head,
        "value_heads": value_heads,
        "values": values,
        "before_values": 2 * keys,
        "mixed": 2 * keys + values,
        "mixed_and_gates": 2 * keys + 2 * values,
        "beta_and_alpha": 2 * value_heads,
    }


def _is_linear(config: Config) -> list[bool]:
    """For every block whether it has a delta net."""
    if config.get("layer_types") is not None:
        return [kind == "linear_attention" for kind in config.layers_of("layer_types")]
    return [
        (layer + 1) % _interval(config) != 0
        for layer in range(config.positive("num_hidden_layers"))
    ]


def _interval(config: Config) -> int:
    return config.positive("full_attention_interval", default=_INTERVAL)


def _nextn(config: Config) -> int:
    """Number of blocks for speculative decoding, after the others."""
    count = config.get("mtp_num_hidden_layers") or 0
    if count not in (0, 1):
        raise CheckpointError(f"config.json: mtp_num_hidden_layers is {count!r}; wanted 0 or 1")
    return int(count)


def nextn_by_tensors(config: Config, tensors: Mapping[str, Source]) -> Mapping[str, Any]:
    """The number of blocks for speculative decoding, for configs that leave it out or say 0."""
    found = any(name.startswith("mtp.") for name in tensors)
    return {} if _nextn(config) or not found else {"mtp_num_hidden_layers": 1}


def _rotated(config: Config) -> int:
    default = config.get("partial_rotary_factor", _ROTATED)
    return int(head_size(config) * config.rope().get("partial_rotary_factor", default))


def _sections(config: Config) -> list[int]:
    sections = [*config.rope().get("mrope_section", _SECTIONS), 0, 0, 0, 0]
    return sections[:4]


def _recurrent(config: Config) -> list[bool]:
    return [*_is_linear(config), *[False] * _nextn(config)]


def _weight(source: str, target: str, *shape: str, **options: Any) -> Rule:
    return Rule(f"{BLOCK}{source}.weight", f"{OUT}{target}.weight", shape, **options)


EVERY_BLOCK = (
    norm("input_layernorm", "attn_norm", transform=plus_one),
    norm("post_attention_layernorm", "post_attention_norm", transform=plus_one),
    _weight("mlp.gate", "ffn_gate_inp", "experts", "hidden"),
    *expert_rules(),
    _weight("mlp.shared_expert_gate", "ffn_gate_inp_shexp", "one", "hidden"),
    *dense_rules("mlp.shared_expert.", "_shexp", "shared"),
)

ATTENTION = (
    _weight("self_attn.q_proj", "attn_q", "queries_and_gates", "hidden", when="attention"),
    _weight("self_attn.k_proj", "attn_k", "keys", "hidden", when="attention"),
    _weight("self_attn.v_proj", "attn_v", "keys", "hidden", when="attention"),
    _weight("self_attn.o_proj", "attn_output", "hidden", "queries", when="attention"),
    norm("self_attn.q_norm", "attn_q_norm", "head", when="attention", transform=plus_one),
    norm("self_attn.k_norm", "attn_k_norm", "head", when="attention", transform=plus_one),
)


def linear(source: str, target: str, *shape: str, **options: Any) -> Rule:
    """A tensor of a delta net; `source` and `target` are whole names inside the block."""
    return Rule(f"{BLOCK}linear_attn.{source}", OUT + target, shape, when="linear", **options)


_HEADS = tiled("key_heads", "value_heads", "one")
_VALUES = tiled("key_heads", "value_heads", "value_head")
_LAST_VALUES = tiled("key_heads", "value_heads", "value_head", start="before_values")
_READ_VALUES = tiled_columns("key_heads", "value_heads", "value_head")

DELTA_NET = (
    linear("in_proj_qkv.weight", "attn_qkv.weight", "mixed", "hidden", transform=_LAST_VALUES),
    linear("in_proj_z.weight", "attn_gate.weight", "values", "hidden", transform=_VALUES),
    linear("in_proj_b.weight", "ssm_beta.weight", "value_heads", "hidden", transform=_HEADS),
    linear("in_proj_a.weight", "ssm_alpha.weight", "value_heads", "hidden", transform=_HEADS),
    linear("conv1d.weight", "ssm_conv1d.weight", "mixed", "one", "kernel", transform=_LAST_VALUES),
    linear("dt_bias", "ssm_dt.bias", "value_heads", transform=_HEADS),
    linear("A_log", "ssm_a", "value_heads", transform=then(_HEADS, minus_exp)),
    linear("norm.weight", "ssm_norm.weight", "value_head"),
    linear("out_proj.weight", "ssm_out.weight", "hidden", "values", transform=_READ_VALUES),
)


def _for_nextn(rule: Rule) -> Rule:
    """The rule for the layer for speculative decoding, which may have been left out."""
    source = rule.source.replace(BLOCK, "mtp.layers.0.")
    target = f"{rule.target}".replace(OUT, "blk.{nextn_block}.")
    return replace(rule, source=source, target=target, when="nextn", optional=True)


def _nextn_weight(source: str, target: str, *shape: str, **options: Any) -> Rule:
    made = f"blk.{{nextn_block}}.nextn.{target}.weight"
    return Rule(f"mtp.{source}.weight", made, shape, when="nextn", optional=True, **options)


NEXTN = (
    *map(_for_nextn, EVERY_BLOCK + ATTENTION),
    _nextn_weight("fc", "eh_proj", "hidden", "twice_hidden"),
    _nextn_weight("pre_fc_norm_embedding", "enorm", "hidden", transform=plus_one),
    _nextn_weight("pre_fc_norm_hidden", "hnorm", "hidden", transform=plus_one),
    _nextn_weight("norm", "shared_head_norm", "hidden", transform=plus_one),
)

FIELDS = (
    Field("block_count", "u32", lambda c: c.positive("num_hidden_layers") + _nextn(c)),
    *MODEL_FIELDS,
    Field("expert_feed_forward_length", "u32", lambda c: c.positive("moe_intermediate_size")),
    Field(
        "expert_shared_feed_forward_length",
        "u32",
        lambda c: c.positive("shared_expert_intermediate_size"),
    ),
    Field("nextn_predict_layers", "u32", lambda c: _nextn(c) or None),
    Field("ssm.conv_kernel", "u32", lambda c: c.positive("linear_conv_kernel_dim")),
    Field("ssm.state_size", "u32", lambda c: c.positive("linear_key_head_dim")),
    Field("ssm.group_count", "u32", lambda c: c.positive("linear_num_key_heads")),
    Field("ssm.time_step_rank", "u32", lambda c: c.positive("linear_num_value_heads")),
    Field("ssm.inner_size", "u32", lambda c: _delta_net_sizes(c)["values"]),
    Field("attention.recurrent_layers", "[bool]", _recurrent),
    Field("full_attention_interval", "u32", _interval),
    Field("rope.dimension_count", "u32", _rotated),
)

FAMILY = Family(
    name="qwen35moe",
    title="Qwen3.5-MoE",
    architectures=("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"),
    model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
    prefixes=("model.language_model.", "model.", ""),
    skipped={"model.visual.": "vision", "visual.": "vision"},
    rules=(*outer_rules(plus_one), *EVERY_BLOCK, *ATTENTION, *DELTA_NET, *NEXTN),
    fields=(*FIELDS, Field("rope.dimension_sections", "[i32]", _sections)),
    sizes=sizes,
    vocabulary=reader("qwen35"),
    inferred=nextn_by_tensors,
)
