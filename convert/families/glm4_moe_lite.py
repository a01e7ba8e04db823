"""GLM-4.7-Flash (30B-A3B): DeepSeek-V3's tensors with GLM's vocabulary, and a predicting block.

The block that predicts one token further is kept here, as llama.cpp's converter keeps it.
"""

from collections.abc import Mapping
from dataclasses import replace

from gemcut.convert.families import deepseek, glm4_moe
from gemcut.convert.families import deepseek_moe as moe
from gemcut.convert.family import Config, Field


def sizes(config: Config, layer: int) -> Mapping[str, int]:
    """Named sizes of one block, as the rules' shapes use them."""
    return {**deepseek.sizes(config, layer), **moe.predicting_sizes(config, layer)}


FAMILY = replace(
    deepseek.V3,
    title="GLM-4.7-Flash",
    architectures=("Glm4MoeLiteForCausalLM",),
    model_types=("glm4_moe_lite",),
    rules=(*deepseek.V3.rules, *moe.predicting_rules()),
    fields=(
        *deepseek.V3.fields,
        Field("block_count", "u32", moe.block_count),
        Field("nextn_predict_layers", "u32", lambda c: moe.predicting(c) or None),
    ),
    sizes=sizes,
    vocabulary=glm4_moe.VOCABULARY,
    layers=moe.layers,
    inferred=moe.present,
    left_out=lambda _: {},
)
