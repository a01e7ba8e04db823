"""GLM-4.5: a dense first block, biases, half of each head rotated, sigmoid routing by a corrected
score, a scaled sum of experts beside a shared one, and a layer for speculative decoding."""

from families.case import Case, Shape

HIDDEN, EXPERTS, EXPERT, HEADS, HEAD, LAYERS, VOCABULARY = 64, 8, 96, 4, 32, 3, 704


def nextn() -> dict[str, Shape]:
    """The layer for speculative decoding, behind the last block; transformers does not load it."""
    block: dict[str, Shape] = {
        "eh_proj.weight": (HIDDEN, 2 * HIDDEN),
        "embed_tokens.weight": (VOCABULARY, HIDDEN),
        "enorm.weight": (HIDDEN,),
        "hnorm.weight": (HIDDEN,),
        "input_layernorm.weight": (HIDDEN,),
        "mlp.gate.e_score_correction_bias": (EXPERTS,),
        "mlp.gate.weight": (EXPERTS, HIDDEN),
        "post_attention_layernorm.weight": (HIDDEN,),
        "self_attn.k_norm.weight": (HEAD,),
        "self_attn.k_proj.bias": (2 * HEAD,),
        "self_attn.k_proj.weight": (2 * HEAD, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
        "self_attn.q_norm.weight": (HEAD,),
        "self_attn.q_proj.bias": (HEADS * HEAD,),
        "self_attn.q_proj.weight": (HEADS * HEAD, HIDDEN),
        "self_attn.v_proj.bias": (2 * HEAD,),
        "self_attn.v_proj.weight": (2 * HEAD, HIDDEN),
        "shared_head.head.weight": (VOCABULARY, HIDDEN),
        "shared_head.norm.weight": (HIDDEN,),
    }
    for expert in ["shared_experts"] + [f"experts.{number}" for number in range(EXPERTS)]:
        block[f"mlp.{expert}.gate_proj.weight"] = (EXPERT, HIDDEN)
        block[f"mlp.{expert}.up_proj.weight"] = (EXPERT, HIDDEN)
        block[f"mlp.{expert}.down_proj.weight"] = (HIDDEN, EXPERT)
    return {f"model.layers.{LAYERS}.{key}": shape for key, shape in block.items()}


CASES = {
    "glm4_moe": Case(
        config={
            "architectures": ["Glm4MoeForCausalLM"],
            "attention_bias": True,
            "attention_dropout": 0.0,
            "eos_token_id": [640, 647, 649],
            "first_k_dense_replace": 1,
            "head_dim": HEAD,
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": 224,
            "max_position_embeddings": 2048,
            "model_type": "glm4_moe",
            "moe_intermediate_size": EXPERT,
            "n_group": 1,
            "n_routed_experts": EXPERTS,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_attention_heads": HEADS,
            "num_experts_per_tok": 2,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": 2,
            "num_nextn_predict_layers": 1,
            "pad_token_id": 640,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "routed_scaling_factor": 2.5,
            "tie_word_embeddings": False,
            "topk_group": 1,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_qk_norm": True,
            "vocab_size": VOCABULARY,
        },
        tokenizer="glm4",
        extra=nextn(),
        dtypes={r".*e_score_correction_bias": "F32"},
        unused=rf"model\.layers\.{LAYERS}\..*",
    )
}
