"""What Gemma 4's config.json says: sizes of the blocks, metadata, which blocks share their keys.

Blocks come in two kinds. Those with full attention have wider, fewer key-value heads than those
with a sliding window, and with `attention_k_eq_v` no value projection of their own. The last
`num_kv_shared_layers` blocks have neither keys nor values: they read those of the last block of
their kind before them, and with `use_double_wide_mlp` their MLP is twice as wide.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gemcut.convert.families.common import BLOCK_COUNT
from gemcut.convert.family import Config, Field
from gemcut.errors import CheckpointError

EXPERTS_APART = "experts_apart"  # what the tensors say: no field of config.json
_UNROTATED = 1e30  # divides a rotary frequency down to no rotation at all
_SLIDING, _FULL = "sliding_attention", "full_attention"


def sizes(config: Config, layer: int) -> Mapping[str, int]:
    """Named sizes of one block, as the rules' shapes use them."""
    sliding = _kinds(config)[layer] == _SLIDING
    head = config.positive("head_dim") if sliding else _full_head(config)
    sliding_heads = config.positive("num_key_value_heads")
    experts, width = _experts(config), _expert_width(config) or 0
    own_keys = layer < _first_shared(config)
    values = sliding or not config.get("attention_k_eq_v", False)
    inputs = _count(config, "hidden_size_per_layer_input")
    return {
        "one": 1,
        "vocabulary": config.positive("vocab_size"),
        "hidden": config.positive("hidden_size"),
        "head": head,
        "queries": config.positive("num_attention_heads") * head,
        "keys": (sliding_heads if sliding else _full_heads(config) or sliding_heads) * head,
        "own_keys": int(own_keys),
        "values": int(values),
        "own_values": int(values and own_keys),
        "dense": _dense_width(config, layer),
        "experts": experts,
        "fused_experts": experts * (not config.get(EXPERTS_APART)),
        "single_experts": experts * bool(config.get(EXPERTS_APART)),
        "gate_and_up": 2 * width,
        "expert": width,
        "inputs": inputs,
        "all_inputs": inputs * config.positive("num_hidden_layers"),
    }


def rope_factors(config: Config) -> Mapping[str, npt.NDArray[np.float32]]:
    """Frequency divisors for the full-attention blocks, which rotate only a part of each head.

    ggml rotates pairs (i, i + n/2) from the front, Gemma's "proportional" rope those of the first
    `partial_rotary_factor`; the rest of the pairs get a divisor that leaves them unrotated.
    """
    rope = _rope(config, _FULL)
    if rope.get("rope_type") != "proportional":
        raise CheckpointError(
            f"config.json: full attention has rope {rope.get('rope_type')!r}, wanted 'proportional'"
        )
    pairs = _full_head(config) // 2
    rotated = int(_full_head(config) * rope.get("partial_rotary_factor", 1.0) / 2)
    factors = np.full(pairs, _UNROTATED, np.float32)
    factors[:rotated] = 1.0
    return {"rope_freqs.weight": factors}


def _kinds(config: Config) -> list[str]:
    return config.layers_of("layer_types")


def _count(config: Config, field: str) -> int:
    """A positive whole number, or 0 where the field is 0, null or missing."""
    return config.positive(field) if config.get(field) else 0


def _first_shared(config: Config) -> int:
    """The first block that reads other blocks' keys and values."""
    return config.positive("num_hidden_layers") - _count(config, "num_kv_shared_layers")


def _full_override(config: Config, name: str) -> int | None:
    """A size of the full-attention blocks, where `per_layer_config` has one."""
    for layer, override in (config.get("per_layer_config") or {}).items():
        if _kinds(config)[int(layer)] != _SLIDING and override.get(name) is not None:
            return int(override[name])
    return None


def _full_head(config: Config) -> int:
    """Width of a full-attention head, in either spelling of the config."""
    if config.get("global_head_dim") is not None:
        return config.positive("global_head_dim")
    found = _full_override(config, "head_dim")
    if found is None:
        raise CheckpointError(
            "config.json: neither global_head_dim nor per_layer_config with head_dim"
        )
    return found


def _full_heads(config: Config) -> int | None:
    """Key-value heads of full attention, where they are others than those of the sliding window.

    As in transformers, and unlike in llama.cpp's converter, the older spelling counts only where
    keys are values; the projections have the other number of rows else.
    """
    if config.get("num_global_key_value_heads") is None:
        return _full_override(config, "num_key_value_heads")
    if not config.get("attention_k_eq_v", False):
        return None
    return config.positive("num_global_key_value_heads")


def _dense_width(config: Config, layer: int) -> int:
    wide = config.get("use_double_wide_mlp", False) and layer >= _first_shared(config)
    return config.positive("intermediate_size") * (2 if wide else 1)


def _experts(config: Config) -> int:
    return config.positive("num_experts") if config.get("enable_moe_block") else 0


def _expert_width(config: Config) -> int | None:
    fields = "expert_intermediate_size", "moe_intermediate_size"
    return config.positive(*fields) if _experts(config) else None


def _rope(config: Config, kind: str) -> Mapping[str, Any]:
    found = config["rope_parameters"].get(kind)
    if not isinstance(found, dict):
        raise CheckpointError(f"config.json: rope_parameters has no {kind}")
    return found


def _check(config: Config) -> None:
    if not config.get("tie_word_embeddings", True):
        raise CheckpointError("config.json: tie_word_embeddings is false; Gemma 4's head is tied")
    if config.get("use_bidirectional_attention") == "all":
        raise CheckpointError(
            "config.json: use_bidirectional_attention is 'all'; llama.cpp has Gemma 4 for text "
            "that is read in one direction"
        )
    kinds, first = _kinds(config), _first_shared(config)
    if first < 2:
        raise CheckpointError(
            f"config.json: {max(first, 0)} blocks with keys of their own; llama.cpp wants 2"
        )
    for kind in sorted(set(kinds[first:])):
        # llama.cpp does not look for the last block of the kind; it takes it to be here.
        lender = first - (2 if kind == _SLIDING else 1)
        if kinds[lender] != kind or kind in kinds[lender + 1 : first]:
            raise CheckpointError(
                f"config.json: num_kv_shared_layers is {len(kinds) - first}, and block {lender}, "
                f"of which llama.cpp would share the keys, is not the last with {kind} before"
            )


def _block_count(config: Config) -> Any:
    _check(config)
    return BLOCK_COUNT.read(config)


def _is_wide(config: Config) -> bool:
    return bool(config.get("use_double_wide_mlp", False))


def _dense_widths(config: Config) -> list[int] | None:
    layers = range(config.positive("num_hidden_layers"))
    return [_dense_width(config, layer) for layer in layers] if _is_wide(config) else None


def _kv_heads(config: Config) -> list[int] | None:
    sliding, full = config.positive("num_key_value_heads"), _full_heads(config)
    if full is None:
        return None
    return [sliding if kind == _SLIDING else full for kind in _kinds(config)]


def _sliding_rotated(config: Config) -> int:
    factor = config["rope_parameters"].get("partial_rotary_factor", 1.0)
    return int(config.positive("head_dim") * factor)


def _size(name: str) -> Callable[[Config], int]:
    return lambda config: config.positive(name)


FIELDS = (
    Field("block_count", "u32", _block_count),
    Field("context_length", "u32", _size("max_position_embeddings")),
    Field("embedding_length", "u32", _size("hidden_size")),
    # One number for all blocks, or a list.
    Field(
        "feed_forward_length",
        "u32",
        lambda c: None if _is_wide(c) else c.positive("intermediate_size"),
    ),
    Field("feed_forward_length", "[i32]", _dense_widths),
    Field("attention.head_count", "u32", _size("num_attention_heads")),
    Field(
        "attention.head_count_kv",
        "u32",
        lambda c: c.positive("num_key_value_heads") if _full_heads(c) is None else None,
    ),
    Field("attention.head_count_kv", "[i32]", _kv_heads),
    Field("rope.freq_base", "f32", lambda c: _rope(c, _FULL)["rope_theta"]),
    Field("rope.freq_base_swa", "f32", lambda c: _rope(c, _SLIDING)["rope_theta"]),
    Field("attention.layer_norm_rms_epsilon", "f32", lambda c: c.get("rms_norm_eps", 1e-6)),
    Field("expert_count", "u32", lambda c: _experts(c) or None),
    Field(
        "expert_used_count", "u32", lambda c: c.positive("top_k_experts") if _experts(c) else None
    ),
    Field("expert_feed_forward_length", "u32", _expert_width),
    Field("attention.key_length", "u32", _full_head),
    Field("attention.value_length", "u32", _full_head),
    Field("attention.key_length_swa", "u32", _size("head_dim")),
    Field("attention.value_length_swa", "u32", _size("head_dim")),
    Field("final_logit_softcapping", "f32", lambda c: c.get("final_logit_softcapping")),
    Field("attention.sliding_window", "u32", _size("sliding_window")),
    Field(
        "attention.sliding_window_pattern",
        "[bool]",
        lambda c: [kind == _SLIDING for kind in _kinds(c)],
    ),
    Field("attention.shared_kv_layers", "u32", lambda c: _count(c, "num_kv_shared_layers")),
    Field(
        "embedding_length_per_layer_input",
        "u32",
        lambda c: _count(c, "hidden_size_per_layer_input"),
    ),
    Field("rope.dimension_count", "u32", _full_head),
    Field("rope.dimension_count_swa", "u32", _sliding_rotated),
)
