"""DeepSeek-V3: latent attention with latent queries, sigmoid routing by a corrected score within
the best groups of experts, and a layer for speculative decoding."""

from families.case import Case, Shape

HIDDEN, EXPERTS, EXPERT, HEADS, LAYERS, VOCABULARY = 64, 8, 96, 4, 3, 672
NOPE, ROPE, VALUE, QUERY_RANK, RANK = 32, 16, 64, 48, 32


def nextn() -> dict[str, Shape]:
    """The layer for speculative decoding, behind the last block."""
    block: dict[str, Shape] = {
        "eh_proj.weight": (HIDDEN, 2 * HIDDEN),
        "embed_tokens.weight": (VOCABULARY, HIDDEN),
        "enorm.weight": (HIDDEN,),
        "hnorm.weight": (HIDDEN,),
        "input_layernorm.weight": (HIDDEN,),
        "mlp.gate.e_score_correction_bias": (EXPERTS,),
        "mlp.gate.weight": (EXPERTS, HIDDEN),
        "post_attention_layernorm.weight": (HIDDEN,),
        "self_attn.kv_a_layernorm.weight": (RANK,),
        "self_attn.kv_a_proj_with_mqa.weight": (RANK + ROPE, HIDDEN),
        "self_attn.kv_b_proj.weight": (HEADS * (NOPE + VALUE), RANK),
        "self_attn.o_proj.weight": (HIDDEN, HEADS * VALUE),
        "self_attn.q_a_layernorm.weight": (QUERY_RANK,),
        "self_attn.q_a_proj.weight": (QUERY_RANK, HIDDEN),
        "self_attn.q_b_proj.weight": (HEADS * (NOPE + ROPE), QUERY_RANK),
        "shared_head.head.weight": (VOCABULARY, HIDDEN),
        "shared_head.norm.weight": (HIDDEN,),
    }
    for expert in ["shared_experts"] + [f"experts.{number}" for number in range(EXPERTS)]:
        block[f"mlp.{expert}.gate_proj.weight"] = (EXPERT, HIDDEN)
        block[f"mlp.{expert}.up_proj.weight"] = (EXPERT, HIDDEN)
        block[f"mlp.{expert}.down_proj.weight"] = (HIDDEN, EXPERT)
    return {f"model.layers.{LAYERS}.{key}": shape for key, shape in block.items()}


CASES = {
    "deepseek_v3": Case(
        config={
            "architectures": ["DeepseekV3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "ep_size": 1,
            "first_k_dense_replace": 1,
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": 224,
            "kv_lora_rank": RANK,
            "max_position_embeddings": 2048,
            "model_type": "deepseek_v3",
            "moe_intermediate_size": EXPERT,
            "moe_layer_freq": 1,
            "n_group": 2,
            "n_routed_experts": EXPERTS,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_attention_heads": HEADS,
            "num_experts_per_tok": 2,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": HEADS,
            "num_nextn_predict_layers": 1,
            "q_lora_rank": QUERY_RANK,
            "qk_nope_head_dim": NOPE,
            "qk_rope_head_dim": ROPE,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 40,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 128,
                "type": "yarn",
            },
            "rope_theta": 10000,
            "routed_scaling_factor": 2.5,
            "scoring_func": "sigmoid",
            "tie_word_embeddings": False,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "v_head_dim": VALUE,
            "vocab_size": VOCABULARY,
        },
        tokenizer="deepseek-v3",
        extra=nextn(),
        dtypes={r".*e_score_correction_bias": "F32"},
        unused=rf"model\.layers\.{LAYERS}\..*",
        generation={"do_sample": True, "temperature": 0.6, "top_p": 0.95},
    )
}
