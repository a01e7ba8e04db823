"""Gemma 4: E2B (an embedding for each block, shared keys and values, wider feed-forward where they
are shared), 31B (dense), 12B (without towers) and 26B-A4B (experts), all around a text model."""

from dataclasses import replace
from typing import Any

from families.case import Case, Shape

HIDDEN, HEADS, HEAD, FULL_HEAD, VOCABULARY = 64, 4, 32, 64, 704

TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_k_eq_v": True,
    "bos_token_id": 2,
    "dtype": "bfloat16",
    "enable_moe_block": False,
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "global_head_dim": FULL_HEAD,
    "head_dim": HEAD,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": HIDDEN,
    "hidden_size_per_layer_input": 0,
    "initializer_range": 0.02,
    "intermediate_size": 160,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "max_position_embeddings": 2048,
    "model_type": "gemma4_text",
    "moe_intermediate_size": None,
    "num_attention_heads": HEADS,
    "num_experts": None,
    "num_global_key_value_heads": 1,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "num_kv_shared_layers": 0,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "full_attention": {
            "partial_rotary_factor": 0.25,
            "rope_theta": 1000000.0,
            "rope_type": "proportional",
        },
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "sliding_window": 16,
    "tie_word_embeddings": True,
    "top_k_experts": None,
    "use_bidirectional_attention": "vision",
    "use_cache": True,
    "use_double_wide_mlp": False,
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
}

CONFIG: dict[str, Any] = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "audio_config": None,
    "audio_token_id": 21,
    "boa_token_id": 18,
    "boi_token_id": 17,
    "dtype": "bfloat16",
    "eoa_token_index": 22,
    "eoi_token_id": 20,
    "eos_token_id": [1, 16],
    "image_token_id": 19,
    "initializer_range": 0.02,
    "model_type": "gemma4",
    "text_config": TEXT,
    "tie_word_embeddings": True,
    "video_token_id": 23,
    "vision_config": {
        "attention_bias": False,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "intermediate_size": 64,
        "model_type": "gemma4_vision",
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "position_embedding_size": 16,
        "rms_norm_eps": 1e-06,
        "use_clipped_linears": False,
    },
}

# A tower's linear layers hold their limits, tensors without a dimension.
AUDIO = {
    "attention_chunk_size": 4,
    "attention_context_left": 5,
    "conv_kernel_size": 3,
    "hidden_act": "silu",
    "hidden_size": 32,
    "model_type": "gemma4_audio",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "output_proj_dims": 48,
    "rms_norm_eps": 1e-06,
    "subsampling_conv_channels": [8, 4],
    "use_clipped_linears": True,
}

TOWERS = r"model\.(vision_tower|audio_tower|embed_vision|embed_audio|vision_embedder)\..*"

DENSE = Case(
    config=CONFIG,
    tokenizer="gemma4",
    draws={
        # The head as well, and multiplied by 8 as input: small, or a token would predict itself.
        r".*embed_tokens\.weight": (0, 0.06),
        r"model\.language_model\.norm\.weight": (4, 1),
        r".*embed_tokens_per_layer\.weight": (0, 0.25),
        r".*[qk]_norm\.weight": (0.6, 0.2),  # no other scale in attention
        r".*(layer_scalar|per_expert_scale|router\.scale)": (1, 0.5),
        r".*router\.proj\.weight": (0, 1.5),
    },
    # What the last block's scalar multiplies is then normalized.
    unused=rf"{TOWERS}|.*layers\.2\.layer_scalar",
)


def wrapping(**changes: Any) -> dict[str, Any]:
    """The config with changes in its text model."""
    return CONFIG | {"text_config": TEXT | changes}


def shared() -> dict[str, Shape]:
    """Keys and values of the blocks that use others': published, and not used."""
    shapes: dict[str, Shape] = {}
    for layer, size in ((3, HEAD), (4, FULL_HEAD)):
        prefix = f"model.language_model.layers.{layer}.self_attn"
        shapes[f"{prefix}.k_proj.weight"] = shapes[f"{prefix}.v_proj.weight"] = (size, HIDDEN)
        shapes[f"{prefix}.k_norm.weight"] = (size,)
    return shapes


E2B = wrapping(
    attention_k_eq_v=False,
    hidden_size_per_layer_input=32,
    layer_types=[*TEXT["layer_types"], "sliding_attention", "full_attention"],
    num_global_key_value_heads=None,
    num_hidden_layers=5,
    num_key_value_heads=1,
    num_kv_shared_layers=2,
    use_bidirectional_attention=None,
    use_double_wide_mlp=True,
) | {"audio_config": AUDIO}
EXPERTS = wrapping(enable_moe_block=True, moe_intermediate_size=96, num_experts=8, top_k_experts=2)
# The newer spelling of the sizes in full attention.
LAYERS = wrapping(per_layer_config={"2": {"head_dim": FULL_HEAD, "num_key_value_heads": 1}})
for spelling in ("global_head_dim", "num_global_key_value_heads"):
    del LAYERS["text_config"][spelling]
UNIFIED = wrapping(model_type="gemma4_unified_text") | {
    "architectures": ["Gemma4UnifiedForConditionalGeneration"],
    "audio_config": {"audio_embed_dim": 32, "model_type": "gemma4_unified_audio"},
    "model_type": "gemma4_unified",
    "vision_config": {
        "mm_embed_dim": 48,
        "mm_posemb_size": 8,
        "model_type": "gemma4_unified_vision",
        "output_proj_dims": 48,
        "patch_size": 4,
        "pooling_kernel_size": 2,
    },
}

CASES = {
    "gemma4_e2b": replace(
        DENSE,
        config=E2B,
        extra=shared(),
        unused=rf"{TOWERS}|.*layers\.4\.layer_scalar|"
        r".*layers\.[34]\.self_attn\.(k_proj|v_proj|k_norm)\..*",
    ),
    "gemma4_31b": replace(DENSE, config=LAYERS),
    "gemma4_12b": replace(
        DENSE, config=UNIFIED, generation={"suppress_tokens": [17, 18, 19, 20, 21, 22, 23]}
    ),
    "gemma4_26b": replace(DENSE, config=EXPERTS),
}
