"""DeepSeek-V2-Lite: latent attention with whole queries, softmax routing, two shared experts.

llama.cpp expects whole queries of models with 26 or 27 blocks only.
"""

from families.case import Case

CASES = {
    "deepseek_v2_lite": Case(
        config={
            "architectures": ["DeepseekV2ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "aux_loss_alpha": 0.001,
            "bos_token_id": 640,
            "eos_token_id": 641,
            "first_k_dense_replace": 24,
            "hidden_act": "silu",
            "hidden_size": 64,
            "initializer_range": 0.02,
            "intermediate_size": 96,
            "kv_lora_rank": 32,
            "max_position_embeddings": 2048,
            "model_type": "deepseek_v2",
            "moe_intermediate_size": 96,
            "moe_layer_freq": 1,
            "n_group": 1,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
            "num_attention_heads": 4,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 26,
            "num_key_value_heads": 4,
            "pretraining_tp": 1,
            "q_lora_rank": None,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 40,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
                "original_max_position_embeddings": 128,
                "type": "yarn",
            },
            "rope_theta": 10000,
            "routed_scaling_factor": 1.0,
            "scoring_func": "softmax",
            "seq_aux": True,
            "tie_word_embeddings": False,
            "topk_group": 1,
            "topk_method": "greedy",
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "v_head_dim": 64,
            "vocab_size": 672,
        },
        tokenizer="deepseek-llm",
    )
}
