"""Llama 4: experts multiplied from the left, their weight given to the input, no rotation in every
fourth block. Dense blocks between those with experts are Maverick's, scaled rotation is Scout's.

llama.cpp fixes the chunk of local attention and the steps of the attention's temperature at 8192
tokens, so that no window of this size shows them.
"""

from dataclasses import replace
from typing import Any

from families.case import Case

HIDDEN, EXPERT = 64, 96

TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_chunk_size": 8192,
    "attention_dropout": 0.0,
    "attn_scale": 0.1,
    "attn_temperature_tuning": True,
    "bos_token_id": 640,
    "eos_token_id": [641, 647, 648],
    "floor_scale": 8192,
    "for_llm_compressor": False,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "interleave_moe_layer_step": 1,
    "intermediate_size": EXPERT,
    "intermediate_size_mlp": 224,
    "max_position_embeddings": 2048,
    "model_type": "llama4_text",
    "moe_layers": [0, 1, 2, 3],
    "no_rope_layers": [1, 1, 1, 0],
    "num_attention_heads": 4,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "pad_token_id": 658,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 16.0,
        "high_freq_factor": 1.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_qk_norm": True,
    "vocab_size": 672,
}

SCOUT = Case(
    config={
        "architectures": ["Llama4ForConditionalGeneration"],
        "boi_token_index": 665,
        "eoi_token_index": 666,
        "image_token_index": 667,
        "model_type": "llama4",
        "text_config": TEXT,
        "torch_dtype": "bfloat16",
        "vision_config": {
            "attention_dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": 32,
            "image_size": 16,
            "initializer_range": 0.02,
            "intermediate_size": 128,
            "model_type": "llama4_vision_model",
            "multi_modal_projector_bias": False,
            "norm_eps": 1e-05,
            "num_attention_heads": 2,
            "num_channels": 3,
            "num_hidden_layers": 1,
            "patch_size": 4,
            "pixel_shuffle_ratio": 0.5,
            "projector_dropout": 0.0,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "rope_theta": 10000,
            "vision_feature_select_strategy": "default",
            "vision_output_dim": 32,
        },
    },
    tokenizer="llama4",
    draws={
        r".*experts\.gate_up_proj": (0, HIDDEN**-0.5),
        r".*experts\.down_proj": (0, EXPERT**-0.5),
    },
    unused=r"vision_model\..*|multi_modal_projector\..*",
    generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9},
)
MAVERICK = TEXT | {
    "architectures": ["Llama4ForCausalLM"],
    "interleave_moe_layer_step": 2,
    "moe_layers": [1, 3],
    "num_experts_per_tok": 2,
    "rope_scaling": None,
}

CASES = {"llama4": SCOUT, "llama4_text": replace(SCOUT, config=MAVERICK)}
