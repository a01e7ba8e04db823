"""Qwen3-Next (80B-A3B): Qwen3.5-MoE's ancestor, with a delta net's projections stored together.

For every key head its query, its key, its values and their gates lie next to each other; llama.cpp
wants all queries, all keys and all values, and the gates apart. The order of the value heads stays.
"""

import numpy as np

from gemcut.convert.families.common import outer_rules
from gemcut.convert.families.qwen3_5_moe import (
    ATTENTION,
    EVERY_BLOCK,
    FIELDS,
    NEXTN,
    linear,
    nextn_by_tensors,
    sizes,
)
from gemcut.convert.family import Family
from gemcut.convert.lazy import Array, picked
from gemcut.convert.transforms import Sizes, Transform, minus_exp, plus_one
from gemcut.convert.vocabulary import reader

_QUERIES, _KEYS, _VALUES, _GATES = range(4)


def _parts(*chosen: int) -> Transform:
    """Some of the four parts of in_proj_qkvz, each for all key heads."""

    def apply(array: Array, sizes: Sizes) -> Array:
        rows = np.arange(array.rows).reshape(sizes["key_heads"], -1)
        shares = (sizes["key_head"], sizes["key_head"], sizes["values"] // sizes["key_heads"])
        parts = np.split(rows, np.cumsum(shares), axis=1)
        return picked(array, np.concatenate([parts[part].reshape(-1) for part in chosen]))

    return apply


_MIXED = _parts(_QUERIES, _KEYS, _VALUES)

DELTA_NET = (
    linear("in_proj_qkvz.weight", "attn_qkv.weight", "mixed_and_gates", "hidden", transform=_MIXED),
    linear(
        "in_proj_qkvz.weight",
        "attn_gate.weight",
        "mixed_and_gates",
        "hidden",
        transform=_parts(_GATES),
    ),
    linear("in_proj_ba.weight", "ssm_ba.weight", "beta_and_alpha", "hidden"),
    linear("conv1d.weight", "ssm_conv1d.weight", "mixed", "one", "kernel"),
    linear("dt_bias", "ssm_dt.bias", "value_heads"),
    linear("A_log", "ssm_a", "value_heads", transform=minus_exp),
    linear("norm.weight", "ssm_norm.weight", "value_head"),
    linear("out_proj.weight", "ssm_out.weight", "hidden", "values"),
)

FAMILY = Family(
    name="qwen3next",
    title="Qwen3-Next",
    architectures=("Qwen3NextForCausalLM",),
    model_types=("qwen3_next",),
    prefixes=("model.",),
    skipped={},
    rules=(*outer_rules(plus_one), *EVERY_BLOCK, *ATTENTION, *DELTA_NET, *NEXTN),
    fields=FIELDS,
    sizes=sizes,
    vocabulary=reader("qwen2"),
    inferred=nextn_by_tensors,
)
