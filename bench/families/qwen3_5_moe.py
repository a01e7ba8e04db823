"""Qwen3.5-MoE: gated attention and gated delta nets, a gated shared expert, fused experts.

Published checkpoints wrap the text model with a vision tower, hold a layer for speculative decoding
whose experts are not fused, and norms around zero but for the one inside the delta net.
"""

from dataclasses import replace
from typing import Any

from families.case import Case, Shape

HIDDEN, EXPERTS, EXPERT, HEADS, HEAD = 64, 8, 96, 4, 32

TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_output_gate": True,
    "dtype": "bfloat16",
    "eos_token_id": 642,
    "full_attention_interval": 2,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 32,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 2048,
    "mlp_only_layers": [],
    "model_type": "qwen3_5_moe_text",
    "moe_intermediate_size": EXPERT,
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "num_attention_heads": HEADS,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 160,
    "use_cache": True,
    "vocab_size": 672,
}


def nextn() -> dict[str, Shape]:
    """The layer for speculative decoding, which transformers does not load."""
    projections = {"gate_proj": (EXPERT, HIDDEN), "up_proj": (EXPERT, HIDDEN)}
    block: dict[str, Shape] = {
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
        "self_attn.q_proj.weight": (2 * HEADS * HEAD, HIDDEN),
        "self_attn.k_proj.weight": (2 * HEAD, HIDDEN),
        "self_attn.v_proj.weight": (2 * HEAD, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
        "self_attn.q_norm.weight": (HEAD,),
        "self_attn.k_norm.weight": (HEAD,),
        "mlp.gate.weight": (EXPERTS, HIDDEN),
        "mlp.shared_expert.gate_proj.weight": (160, HIDDEN),
        "mlp.shared_expert.up_proj.weight": (160, HIDDEN),
        "mlp.shared_expert.down_proj.weight": (HIDDEN, 160),
        "mlp.shared_expert_gate.weight": (1, HIDDEN),
    }
    for number in range(EXPERTS):
        for key, shape in (projections | {"down_proj": (HIDDEN, EXPERT)}).items():
            block[f"mlp.experts.{number}.{key}.weight"] = shape
    return {f"mtp.layers.0.{key}": shape for key, shape in block.items()} | {
        "mtp.fc.weight": (HIDDEN, 2 * HIDDEN),
        "mtp.norm.weight": (HIDDEN,),
        "mtp.pre_fc_norm_embedding.weight": (HIDDEN,),
        "mtp.pre_fc_norm_hidden.weight": (HIDDEN,),
    }


MULTIMODAL = Case(
    config={
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "image_token_id": 652,
        "model_type": "qwen3_5_moe",
        "text_config": TEXT,
        "tie_word_embeddings": False,
        "video_token_id": 653,
        "vision_config": {
            "deepstack_visual_indexes": [],
            "depth": 1,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 32,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 32,
            "model_type": "qwen3_5_moe",
            "num_heads": 2,
            "num_position_embeddings": 16,
            "out_hidden_size": HIDDEN,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": 650,
        "vision_start_token_id": 649,
    },
    tokenizer="qwen35",
    extra=nextn(),
    dtypes={r".*\.(A_log|linear_attn\.norm\.weight)": "F32"},
    draws={
        r".*linear_attn\.norm\.weight": (1, 0.3),
        r".*self_attn\.[qk]_norm\.weight": (0.5, 0.6),
        r".*norm.*\.weight": (0, 0.3),
        r".*A_log": (0.5, 0.6),
    },
    unused=r"mtp\..*|model\.visual\..*",
    generation={"do_sample": True, "temperature": 1.0, "top_k": 20, "top_p": 0.95},
)

CASES = {
    "qwen3_5_moe": MULTIMODAL,
    "qwen3_5_moe_text": replace(
        MULTIMODAL, config={"architectures": ["Qwen3_5MoeForCausalLM"], **TEXT}
    ),
}
