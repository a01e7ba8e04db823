"""Llama 4 (Scout 109B, Maverick 400B): routed experts and one shared one, in all blocks or some.

Experts come fused as [inputs, outputs], the gate's columns first. Both sides rotate neighbouring
pairs, so rows keep their order. Much of the graph is no metadata but fixed in llama.cpp; a config
that says otherwise is refused, since it would be computed wrongly.
"""

from collections.abc import Mapping
from math import pi

import numpy as np
import numpy.typing as npt

from gemcut.convert.families.common import (
    BLOCK,
    MODEL_FIELDS,
    OUT,
    attention_rules,
    attention_sizes,
    dense_rules,
    expert_rules,
    expert_sizes,
    head_size,
    norm,
    outer_rules,
)
from gemcut.convert.family import Config, Family, Field, Rule
from gemcut.convert.transforms import first_half, second_half, then, transposed
from gemcut.convert.vocabulary import reader
from gemcut.errors import CheckpointError

_NO_ROPE = 4  # every fourth block has no rotary embedding, and attends to everything
_WITHOUT_NORM = 128  # experts: by this llama.cpp knows a model whose queries are not normalized
_FIXED = {"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1}


def sizes(config: Config, layer: int) -> Mapping[str, int]:
    """Named sizes of one block, as the rules' shapes use them."""
    routed = int((layer + 1) % config.positive("interleave_moe_layer_step", default=1) == 0)
    return {
        **attention_sizes(config),
        **expert_sizes(config, "intermediate_size"),
        "dense": config.positive("intermediate_size_mlp"),
        "is_dense": 1 - routed,
        "is_routed": routed,
    }


def rope_factors(config: Config) -> Mapping[str, npt.NDArray[np.float32]]:
    """Frequency divisors of the `llama3` scaling: long waves are stretched, short ones are not.

    In float32, step by step as llama.cpp's converter computes them; where there are waves between
    the long and the short ones, numpy's powers may differ from torch's in the last bits.
    """
    rope = config.rope()
    if str(rope["rope_type"]).lower() != "llama3":
        return {}
    factor, context = rope.get("factor", 8.0), rope.get("original_max_position_embeddings", 8192)
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    head = head_size(config)
    powers = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    waves = np.float32(2 * pi) / (1 / np.float32(rope["rope_theta"]) ** powers)
    factors = np.where(waves < context / high, 1, factor).astype(np.float32)
    between = (waves >= context / high) & (waves <= context / low)
    if between.any():  # never so with Scout's settings, where low and high are the same
        share = (context / waves[between] - low) / np.float32(high - low)
        factors[between] = 1 / ((1 - share) / np.float32(factor) + share)
    return {"rope_freqs.weight": factors}


def _block_count(config: Config) -> int:
    count = config.positive("num_hidden_layers")
    step = config.positive("interleave_moe_layer_step", default=1)
    rotated = [int((layer + 1) % _NO_ROPE != 0) for layer in range(count)]
    attention = ["chunked_attention" if rope else "full_attention" for rope in rotated]
    wanted = {
        **_FIXED,
        "attn_temperature_tuning": (True, _NO_ROPE),
        "use_qk_norm": config.positive("num_local_experts") != _WITHOUT_NORM,
        "no_rope_layer_interval": _NO_ROPE,
        "no_rope_layers": (rotated, []),
        "layer_types": attention,
        "moe_layers": list(range(step - 1, count, step)),
    }
    for field, value in wanted.items():
        known = value if isinstance(value, tuple) else (value,)
        if config.get(field) is not None and config[field] not in known:
            raise CheckpointError(
                f"config.json: {field} is {config[field]}; llama.cpp computes all models of this "
                f"architecture and size as if it were {known[0]}"
            )
    return count


def _fused_rules() -> tuple[Rule, ...]:
    """Experts as published; see `expert_rules` for those of one tensor each."""
    source, when = BLOCK + "feed_forward.experts.", "is_routed"
    both, gate_and_up = ("experts", "hidden", "gate_and_up"), source + "gate_up_proj"
    gate, up = then(transposed, first_half), then(transposed, second_half)
    down = ("experts", "expert", "hidden")
    return (
        Rule(gate_and_up, OUT + "ffn_gate_exps.weight", both, when, transform=gate),
        Rule(gate_and_up, OUT + "ffn_up_exps.weight", both, when, transform=up),
        Rule(source + "down_proj", OUT + "ffn_down_exps.weight", down, when, transform=transposed),
    )


FAMILY = Family(
    name="llama4",
    title="Llama 4",
    architectures=("Llama4ForConditionalGeneration", "Llama4ForCausalLM"),
    model_types=("llama4", "llama4_text"),
    prefixes=("language_model.model.", "language_model.", "model."),
    skipped={"vision_model.": "vision", "multi_modal_projector.": "vision"},
    rules=(
        *outer_rules(),
        norm("input_layernorm", "attn_norm"),
        *attention_rules(),
        norm("post_attention_layernorm", "ffn_norm"),
        *dense_rules("feed_forward.", when="is_dense"),
        Rule(
            BLOCK + "feed_forward.router.weight",
            OUT + "ffn_gate_inp.weight",
            ("experts", "hidden"),
            when="is_routed",
        ),
        *_fused_rules(),
        *expert_rules("feed_forward.experts.", when="is_routed"),
        *dense_rules("feed_forward.shared_expert.", "_shexp", "expert", when="is_routed"),
    ),
    fields=(
        Field("block_count", "u32", _block_count),
        *MODEL_FIELDS,
        Field("feed_forward_length", "u32", lambda c: c.positive("intermediate_size_mlp")),
        Field("vocab_size", "u32", lambda c: c.positive("vocab_size")),
        Field("rope.dimension_count", "u32", head_size),
        Field(
            "interleave_moe_layer_step",
            "u32",
            lambda c: c.positive("interleave_moe_layer_step", default=1),
        ),
        Field("expert_feed_forward_length", "u32", lambda c: c.positive("intermediate_size")),
    ),
    sizes=sizes,
    vocabulary=reader("llama4"),
    generated=rope_factors,
)
