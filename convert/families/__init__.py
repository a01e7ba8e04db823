"""The architectures that gemcut converts, one module each."""

from gemcut.convert.families import (
    deepseek,
    gemma4,
    glm4_moe,
    glm4_moe_lite,
    gpt_oss,
    llama4,
    mixtral,
    olmoe,
    qwen3_5_moe,
    qwen3_moe,
    qwen3_next,
)
from gemcut.convert.family import Family

FAMILIES: tuple[Family, ...] = (
    gemma4.FAMILY,
    gemma4.UNIFIED,
    mixtral.FAMILY,
    olmoe.FAMILY,
    qwen3_moe.FAMILY,
    qwen3_5_moe.FAMILY,
    qwen3_next.FAMILY,
    gpt_oss.FAMILY,
    glm4_moe.FAMILY,
    glm4_moe_lite.FAMILY,
    deepseek.V2,
    deepseek.V3,
    llama4.FAMILY,
)
