"""Mixtral (8x7B, 8x22B): Llama's attention, and routed experts instead of its dense MLP.

llama.cpp runs it as its architecture "llama", whose rotary embedding turns neighbouring pairs, so
the rows of queries and keys change their order.
"""

from collections.abc import Mapping

from gemcut.convert.families.common import (
    BLOCK,
    BLOCK_COUNT,
    MODEL_FIELDS,
    OUT,
    attention_rules,
    attention_sizes,
    expert_rules,
    expert_sizes,
    head_size,
    norm,
    outer_rules,
)
from gemcut.convert.family import Config, Family, Field, Rule
from gemcut.convert.transforms import interleaved_rope
from gemcut.convert.vocabulary import reader


def sizes(config: Config, layer: int) -> Mapping[str, int]:
    """Named sizes of one block, as the rules' shapes use them."""
    return {**attention_sizes(config), **expert_sizes(config, "intermediate_size")}


_MOE = "block_sparse_moe."
_ROUTER = ("experts", "hidden")

RULES = (
    *outer_rules(),
    norm("input_layernorm", "attn_norm"),
    *attention_rules(interleaved_rope("heads"), interleaved_rope("kv_heads")),
    norm("post_attention_layernorm", "ffn_norm"),
    Rule(BLOCK + _MOE + "gate.weight", OUT + "ffn_gate_inp.weight", _ROUTER),
    Rule(BLOCK + "mlp.gate.weight", OUT + "ffn_gate_inp.weight", _ROUTER),
    *expert_rules(_MOE + "experts.", gate="w1", up="w3", down="w2"),
)

FAMILY = Family(
    name="llama",
    title="Mixtral",
    architectures=("MixtralForCausalLM",),
    model_types=("mixtral",),
    prefixes=("model.",),
    skipped={},
    rules=RULES,
    fields=(
        BLOCK_COUNT,
        *MODEL_FIELDS,
        Field("vocab_size", "u32", lambda c: c.positive("vocab_size")),
        Field("rope.dimension_count", "u32", head_size),
    ),
    sizes=sizes,
    vocabulary=reader(),
)
