"""OLMoE (1B-7B): norms over whole projections of queries and keys, 64 small experts."""

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
    norm,
    outer_rules,
)
from gemcut.convert.family import Config, Family, Rule
from gemcut.convert.vocabulary import reader


def sizes(config: Config, layer: int) -> Mapping[str, int]:
    """Named sizes of one block, as the rules' shapes use them."""
    return {**attention_sizes(config), **expert_sizes(config, "intermediate_size")}


FAMILY = Family(
    name="olmoe",
    title="OLMoE",
    architectures=("OlmoeForCausalLM",),
    model_types=("olmoe",),
    prefixes=("model.",),
    skipped={},
    rules=(
        *outer_rules(),
        norm("input_layernorm", "attn_norm"),
        *attention_rules(),
        norm("self_attn.q_norm", "attn_q_norm", "queries"),
        norm("self_attn.k_norm", "attn_k_norm", "keys"),
        norm("post_attention_layernorm", "ffn_norm"),
        Rule(BLOCK + "mlp.gate.weight", OUT + "ffn_gate_inp.weight", ("experts", "hidden")),
        *expert_rules(),
    ),
    fields=(BLOCK_COUNT, *MODEL_FIELDS),
    sizes=sizes,
    vocabulary=reader("olmo"),
)
