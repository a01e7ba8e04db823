"""Gemma 4's Mixture-of-Experts text model (26B-A4B and models of its shape).

Every block has attention, a dense MLP and routed experts side by side. Blocks with full attention
have wider, fewer key-value heads than those with a sliding window, and with `attention_k_eq_v`
no value projection of their own. Experts come fused, gate rows before up rows, and stay fused.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gemcut.convert import tokenizer
from gemcut.convert.family import Config, Family, Field, Rule
from gemcut.errors import CheckpointError

# Written as plain text, since chat parsers read them (as llama.cpp's converter does).
VISIBLE_TOKENS = frozenset(
    "<|channel> <channel|> <|tool_call> <tool_call|> <|tool_response> <tool_response|>".split()
    + ['<|"|>']
)

_UNROTATED = 1e30  # divides a rotary frequency down to no rotation at all


def _is_sliding(config: Config, layer: int) -> bool:
    kinds = config["layer_types"]
    if not isinstance(kinds, list):
        raise CheckpointError(f"config.json: layer_types is {kinds!r}, wanted a list")
    if len(kinds) != config["num_hidden_layers"]:
        raise CheckpointError(
            f"config.json: layer_types has {len(kinds)} entries, wanted num_hidden_layers = "
            f"{config['num_hidden_layers']}"
        )
    return bool(kinds[layer] == "sliding_attention")


def _full_attention(config: Config, old: str, new: str, default: str | None) -> int:
    """A size of the full-attention blocks, in either spelling of the config."""
    if config.get(old) is not None:
        return config.positive(old)
    for layer, override in (config.get("per_layer_config") or {}).items():
        if not _is_sliding(config, int(layer)) and override.get(new) is not None:
            return int(override[new])
    if default is None:
        raise CheckpointError(f"config.json: neither {old} nor per_layer_config with {new}")
    return config.positive(default)


def _head_size(config: Config) -> int:
    return _full_attention(config, "global_head_dim", "head_dim", None)


def _kv_heads(config: Config) -> int:
    return _full_attention(
        config, "num_global_key_value_heads", "num_key_value_heads", "num_key_value_heads"
    )


def _expert_width(config: Config) -> int:
    name = "expert_intermediate_size"
    return config.positive(name if name in config else "moe_intermediate_size")


def sizes(config: Config, layer: int) -> Mapping[str, int]:
    """Named sizes of one block, as the rules' shapes use them."""
    sliding = _is_sliding(config, layer)
    head = config.positive("head_dim") if sliding else _head_size(config)
    kv_heads = config.positive("num_key_value_heads") if sliding else _kv_heads(config)
    width = _expert_width(config)
    return {
        "one": 1,
        "vocabulary": config.positive("vocab_size"),
        "hidden": config.positive("hidden_size"),
        "head": head,
        "queries": config.positive("num_attention_heads") * head,
        "keys": kv_heads * head,
        "has_values": int(sliding or not config.get("attention_k_eq_v", False)),
        "dense": config.positive("intermediate_size"),
        "experts": config.positive("num_experts"),
        "gate_and_up": 2 * width,
        "expert": width,
    }


def rope_factors(config: Config) -> Mapping[str, npt.NDArray[np.float32]]:
    """Frequency divisors for the full-attention blocks, which rotate only a part of each head.

    ggml rotates pairs (i, i + n/2) from the front, Gemma's "proportional" rope those of the first
    `partial_rotary_factor`; the rest of the pairs get a divisor that leaves them unrotated.
    """
    rope = _rope(config, "full_attention")
    if rope.get("rope_type") != "proportional":
        raise CheckpointError(
            f"config.json: full attention has rope {rope.get('rope_type')!r}, wanted 'proportional'"
        )
    pairs = _head_size(config) // 2
    rotated = int(_head_size(config) * rope.get("partial_rotary_factor", 1.0) / 2)
    factors = np.full(pairs, _UNROTATED, np.float32)
    factors[:rotated] = 1.0
    return {"rope_freqs.weight": factors}


def _rope(config: Config, kind: str) -> Mapping[str, Any]:
    found = config["rope_parameters"].get(kind)
    if not isinstance(found, dict):
        raise CheckpointError(f"config.json: rope_parameters has no {kind}")
    return found


def _check(config: Config) -> None:
    if not config.get("enable_moe_block"):
        raise CheckpointError("config.json: a Gemma 4 without experts; gemcut cuts the MoE ones")
    if not config.get("tie_word_embeddings", True):
        raise CheckpointError("config.json: tie_word_embeddings is false; Gemma 4's head is tied")
    for field in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
        if config.get(field):
            raise CheckpointError(f"config.json: {field} is {config[field]}; wanted 0")


def _block_count(config: Config) -> int:
    _check(config)
    return config.positive("num_hidden_layers")


def _kv_heads_by_layer(config: Config) -> list[int]:
    layers = range(config.positive("num_hidden_layers"))
    sliding, full = config.positive("num_key_value_heads"), _kv_heads(config)
    return [sliding if _is_sliding(config, layer) else full for layer in layers]


def _sliding_by_layer(config: Config) -> list[bool]:
    return [_is_sliding(config, layer) for layer in range(config["num_hidden_layers"])]


def _sliding_rotated(config: Config) -> int:
    factor = config["rope_parameters"].get("partial_rotary_factor", 1.0)
    return int(config.positive("head_dim") * factor)


_BLOCK = "layers.{layer}."
_OUT = "blk.{layer}."

RULES = (
    Rule("embed_tokens.weight", "token_embd.weight", ("vocabulary", "hidden")),
    Rule("norm.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", None),  # tied to the embedding
    Rule(_BLOCK + "input_layernorm.weight", _OUT + "attn_norm.weight", ("hidden",)),
    Rule(_BLOCK + "self_attn.q_proj.weight", _OUT + "attn_q.weight", ("queries", "hidden")),
    Rule(_BLOCK + "self_attn.k_proj.weight", _OUT + "attn_k.weight", ("keys", "hidden")),
    Rule(
        _BLOCK + "self_attn.v_proj.weight",
        _OUT + "attn_v.weight",
        ("keys", "hidden"),
        layers="has_values",
    ),
    Rule(_BLOCK + "self_attn.o_proj.weight", _OUT + "attn_output.weight", ("hidden", "queries")),
    Rule(_BLOCK + "self_attn.q_norm.weight", _OUT + "attn_q_norm.weight", ("head",)),
    Rule(_BLOCK + "self_attn.k_norm.weight", _OUT + "attn_k_norm.weight", ("head",)),
    Rule(
        _BLOCK + "post_attention_layernorm.weight",
        _OUT + "post_attention_norm.weight",
        ("hidden",),
    ),
    Rule(_BLOCK + "pre_feedforward_layernorm.weight", _OUT + "ffn_norm.weight", ("hidden",)),
    Rule(_BLOCK + "mlp.gate_proj.weight", _OUT + "ffn_gate.weight", ("dense", "hidden")),
    Rule(_BLOCK + "mlp.up_proj.weight", _OUT + "ffn_up.weight", ("dense", "hidden")),
    Rule(_BLOCK + "mlp.down_proj.weight", _OUT + "ffn_down.weight", ("hidden", "dense")),
    Rule(
        _BLOCK + "post_feedforward_layernorm_1.weight",
        _OUT + "post_ffw_norm_1.weight",
        ("hidden",),
    ),
    Rule(
        _BLOCK + "pre_feedforward_layernorm_2.weight",
        _OUT + "pre_ffw_norm_2.weight",
        ("hidden",),
    ),
    Rule(
        _BLOCK + "post_feedforward_layernorm_2.weight",
        _OUT + "post_ffw_norm_2.weight",
        ("hidden",),
    ),
    Rule(_BLOCK + "post_feedforward_layernorm.weight", _OUT + "post_ffw_norm.weight", ("hidden",)),
    Rule(
        _BLOCK + "router.proj.weight",
        _OUT + "ffn_gate_inp.weight",
        ("experts", "hidden"),
        kept=True,
    ),
    Rule(_BLOCK + "router.scale", _OUT + "ffn_gate_inp.scale", ("hidden",)),
    Rule(_BLOCK + "router.per_expert_scale", _OUT + "ffn_down_exps.scale", ("experts",)),
    Rule(
        _BLOCK + "experts.gate_up_proj",
        _OUT + "ffn_gate_up_exps.weight",
        ("experts", "gate_and_up", "hidden"),
    ),
    Rule(
        _BLOCK + "experts.down_proj",
        _OUT + "ffn_down_exps.weight",
        ("experts", "hidden", "expert"),
    ),
    Rule(_BLOCK + "layer_scalar", _OUT + "layer_output_scale.weight", ("one",)),
)

FIELDS = (
    Field("block_count", "u32", _block_count),
    Field("context_length", "u32", lambda c: c.positive("max_position_embeddings")),
    Field("embedding_length", "u32", lambda c: c.positive("hidden_size")),
    Field("feed_forward_length", "u32", lambda c: c.positive("intermediate_size")),
    Field("attention.head_count", "u32", lambda c: c.positive("num_attention_heads")),
    Field("attention.head_count_kv", "[i32]", _kv_heads_by_layer),
    Field("rope.freq_base", "f32", lambda c: _rope(c, "full_attention")["rope_theta"]),
    Field("rope.freq_base_swa", "f32", lambda c: _rope(c, "sliding_attention")["rope_theta"]),
    Field("attention.layer_norm_rms_epsilon", "f32", lambda c: c.get("rms_norm_eps", 1e-6)),
    Field("expert_count", "u32", lambda c: c.positive("num_experts")),
    Field("expert_used_count", "u32", lambda c: c.positive("top_k_experts")),
    Field("expert_feed_forward_length", "u32", _expert_width),
    Field("attention.key_length", "u32", _head_size),
    Field("attention.value_length", "u32", _head_size),
    Field("attention.key_length_swa", "u32", lambda c: c.positive("head_dim")),
    Field("attention.value_length_swa", "u32", lambda c: c.positive("head_dim")),
    Field("final_logit_softcapping", "f32", lambda c: c.get("final_logit_softcapping")),
    Field("attention.sliding_window", "u32", lambda c: c.positive("sliding_window")),
    Field("attention.sliding_window_pattern", "[bool]", _sliding_by_layer),
    Field("attention.shared_kv_layers", "u32", lambda c: c.get("num_kv_shared_layers", 0)),
    Field("embedding_length_per_layer_input", "u32", lambda _: 0),
    Field("rope.dimension_count", "u32", _head_size),
    Field("rope.dimension_count_swa", "u32", _sliding_rotated),
)

FAMILY = Family(
    name="gemma4",
    architectures=("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    prefixes=("model.language_model.", "language_model.model.", "model.", ""),
    skipped={
        "model.vision_tower.": "vision",
        "model.embed_vision.": "vision",
        "model.audio_tower.": "audio",
        "model.embed_audio.": "audio",
    },
    rules=RULES,
    fields=FIELDS,
    sizes=sizes,
    vocabulary=tokenizer.gemma_vocabulary(VISIBLE_TOKENS),
    generated=rope_factors,
)
