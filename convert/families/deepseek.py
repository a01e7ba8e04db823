"""DeepSeek-V2, V3 and R1, and what was trained in their shape: latent attention, many experts.

llama.cpp attends in the latent space. Of the projection that makes keys and values from it, the
keys' part is applied to the queries, transposed per head, and the values' part to what attention
gives; there is one key for all heads. Both sides rotate neighbouring pairs, so rows keep their
order. The blocks for speculative decoding are left out, as llama.cpp's converter leaves them out.
"""

from collections.abc import Mapping
from dataclasses import replace

from gemcut.convert.families import deepseek_moe as moe
from gemcut.convert.families.common import (
    BLOCK,
    BLOCK_COUNT,
    EXPERT_FIELDS,
    OUT,
    ROPE_FIELDS,
    SIGMOID,
    TEXT_FIELDS,
    norm,
    outer_rules,
    untied,
)
from gemcut.convert.family import Config, Family, Field, Rule
from gemcut.convert.transforms import per_head
from gemcut.convert.vocabulary import reader


def sizes(config: Config, layer: int) -> Mapping[str, int]:
    """Named sizes of one block, as the rules' shapes use them."""
    heads, hidden = config.positive("num_attention_heads"), config.positive("hidden_size")
    plain, rotated = config.positive("qk_nope_head_dim"), config.positive("qk_rope_head_dim")
    values, latent = config.positive("v_head_dim"), config.positive("kv_lora_rank")
    query_rank = config.get("q_lora_rank") or 0
    return {
        **moe.sizes(config, layer),
        "vocabulary": config.positive("vocab_size"),
        "hidden": hidden,
        "untied": untied(config),
        "heads": heads,
        "plain": plain,
        "values": values,
        "queries": heads * (plain + rotated),
        "query_rank": query_rank,
        "direct_queries": int(not query_rank),
        "latent": latent,
        "latent_and_rotated": latent + rotated,
        "keys_and_values": heads * (plain + values),
        "attended": heads * values,
    }


def _attention_rules() -> tuple[Rule, ...]:
    source, made = BLOCK + "self_attn.", OUT + "attn_"
    key_value, both = source + "kv_b_proj.weight", ("keys_and_values", "latent")
    keys = per_head("heads", None, "plain", turn=True)
    values = per_head("heads", "plain", "values")
    return (
        Rule(source + "q_proj.weight", made + "q.weight", ("queries", "hidden"), "direct_queries"),
        Rule(
            source + "q_a_proj.weight", made + "q_a.weight", ("query_rank", "hidden"), "query_rank"
        ),
        norm("self_attn.q_a_layernorm", "attn_q_a_norm", "query_rank", when="query_rank"),
        Rule(
            source + "q_b_proj.weight", made + "q_b.weight", ("queries", "query_rank"), "query_rank"
        ),
        Rule(
            source + "kv_a_proj_with_mqa.weight",
            made + "kv_a_mqa.weight",
            ("latent_and_rotated", "hidden"),
        ),
        norm("self_attn.kv_a_layernorm", "attn_kv_a_norm", "latent"),
        Rule(key_value, made + "k_b.weight", both, transform=keys),
        Rule(key_value, made + "v_b.weight", both, transform=values),
        Rule(source + "o_proj.weight", made + "output.weight", ("hidden", "attended")),
    )


def _rules(biased: bool) -> tuple[Rule, ...]:
    return (
        *outer_rules(),
        norm("input_layernorm", "attn_norm"),
        *_attention_rules(),
        norm("post_attention_layernorm", "ffn_norm"),
        *moe.rules(biased),
    )


def _predicting_blocks(config: Config) -> Mapping[str, str]:
    """Prefixes of what is left out; V3's checkpoints have a block whatever the config says."""
    first = config.positive("num_hidden_layers")
    numbers = range(first, first + max(1, moe.predicting(config)))
    return {f"model.layers.{number}.": "multi-token prediction" for number in numbers}


def _latent_key(config: Config) -> int:
    """Width of the one key of all heads."""
    return config.positive("kv_lora_rank") + config.positive("qk_rope_head_dim")


def _head_key(config: Config) -> int:
    """Width of a head's key, were it made."""
    return config.positive("qk_nope_head_dim") + config.positive("qk_rope_head_dim")


def _temperature(config: Config) -> float | None:
    """YaRN's factor on attention; a tenth, as all of llama.cpp's files of this architecture."""
    factor = config.rope().get("mscale_all_dim")
    return None if factor is None else 0.1 * factor


FIELDS = (
    BLOCK_COUNT,
    *TEXT_FIELDS,
    Field("attention.head_count_kv", "u32", lambda _: 1),
    Field("attention.layer_norm_rms_epsilon", "f32", lambda c: c.get("rms_norm_eps", 1e-6)),
    *ROPE_FIELDS,
    *EXPERT_FIELDS,
    *moe.FIELDS,
    Field("expert_weights_norm", "bool", lambda c: c.get("norm_topk_prob") or None),
    Field("vocab_size", "u32", lambda c: c.positive("vocab_size")),
    Field("attention.q_lora_rank", "u32", lambda c: c.get("q_lora_rank")),
    Field("attention.kv_lora_rank", "u32", lambda c: c.positive("kv_lora_rank")),
    Field("attention.key_length", "u32", _latent_key),
    Field("attention.value_length", "u32", lambda c: c.positive("kv_lora_rank")),
    Field("attention.key_length_mla", "u32", _head_key),
    Field("attention.value_length_mla", "u32", lambda c: c.positive("v_head_dim")),
    Field("rope.dimension_count", "u32", lambda c: c.positive("qk_rope_head_dim")),
    Field("rope.scaling.yarn_log_multiplier", "f32", _temperature),
)

V2 = Family(
    name="deepseek2",
    title="DeepSeek-V2",
    architectures=("DeepseekV2ForCausalLM",),
    model_types=("deepseek_v2",),
    prefixes=("model.",),
    skipped={},
    rules=_rules(biased=False),
    fields=FIELDS,
    sizes=sizes,
    vocabulary=reader("deepseek-v3", "deepseek-llm"),
)

V3 = replace(
    V2,
    title="DeepSeek-V3",
    architectures=("DeepseekV3ForCausalLM",),
    model_types=("deepseek_v3", "kimi_k2"),
    rules=_rules(biased=True),
    # Unlike llama.cpp's converter also where config.json does not say it, as transformers writes
    # it: all of the architecture is gated by a sigmoid, and llama.cpp would take the softmax.
    fields=(Field("expert_gating_func", "u32", lambda _: SIGMOID), *FIELDS),
    left_out=_predicting_blocks,
)
