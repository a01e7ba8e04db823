"""gpt-oss: MXFP4 experts with gate and up rows in turn, biases everywhere, sinks, sliding windows.

The second case is the other published layout, BF16 experts with rows and columns exchanged.
"""

from dataclasses import replace
from typing import Any

from families.case import Case, Draw, Shape

HIDDEN, EXPERTS, EXPERT, LAYERS = 64, 8, 96, 4

CONFIG: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 644,
    "experts_per_token": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initial_context_length": 128,
    "initializer_range": 0.02,
    "intermediate_size": EXPERT,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 4096,
    "model_type": "gpt_oss",
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "num_local_experts": EXPERTS,
    "output_router_logits": False,
    "pad_token_id": 641,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 128,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 172235,  # ramp ends at a whole dimension: llama.cpp truncates it
    "router_aux_loss_coef": 0.9,
    "sliding_window": 16,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 672,
}
MXFP4 = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}
# Experts as they are multiplied from the left, [inputs, outputs]: a variance of 1 / inputs.
DRAWS: dict[str, Draw] = {
    r".*experts\.gate_up_proj": (0, HIDDEN**-0.5),
    r".*experts\.down_proj": (0, EXPERT**-0.5),
    r".*sinks": (0, 1),
    r".*_blocks": (128, 128 / 3**0.5),  # all bytes, so all pairs of values
    r".*_scales": (122, 2 / 3**0.5),  # exponents -7 to -4, plus 127
}


def blocks() -> dict[str, Shape]:
    """The experts in MXFP4: two values in a byte, 32 values with one scale."""
    shapes: dict[str, Shape] = {}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}.mlp.experts"
        for name, size in (("gate_up_proj", (2 * EXPERT, HIDDEN)), ("down_proj", (HIDDEN, EXPERT))):
            shapes[f"{prefix}.{name}_blocks"] = (EXPERTS, size[0], size[1] // 32, 16)
            shapes[f"{prefix}.{name}_scales"] = (EXPERTS, size[0], size[1] // 32)
    return shapes


PLAIN = Case(
    config=CONFIG,
    tokenizer="gpt-4o",
    draws=DRAWS,
)

CASES = {
    "gpt_oss": replace(
        PLAIN,
        config=CONFIG | {"quantization_config": MXFP4},
        extra=blocks(),
        dropped=r".*experts\.(gate_up|down)_proj",
        dtypes={r".*_(blocks|scales)": "U8"},
    ),
    "gpt_oss_bf16": PLAIN,
}
