"""Qwen3-Next: Qwen3.5-MoE's ancestor, with fewer projections in a delta net and no vision.

Published checkpoints have experts one by one, a layer for speculative decoding that config.json
does not mention, and rotary settings in the older spelling.
"""

from families.case import Case
from families.qwen3_5_moe import TEXT, nextn

_NEWER = ("layer_types", "mamba_ssm_dtype", "rope_parameters", "dtype", "attn_output_gate")

CONFIG = {key: value for key, value in TEXT.items() if not key.startswith(("mtp_", *_NEWER))} | {
    "architectures": ["Qwen3NextForCausalLM"],
    "bos_token_id": 640,
    "decoder_sparse_step": 1,
    "full_attention_interval": 4,
    "intermediate_size": 192,
    "model_type": "qwen3_next",
    "norm_topk_prob": True,
    "output_router_logits": False,
    "partial_rotary_factor": 0.25,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

CASES = {
    "qwen3_next": Case(
        config=CONFIG,
        tokenizer="qwen2",
        extra=nextn(),
        draws={
            r".*linear_attn\.norm\.weight": (1, 0.3),
            r".*norm.*\.weight": (0, 0.3),
            r".*A_log": (0.5, 0.6),
        },
        unused=r"mtp\..*",
        generation={"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8},
    )
}
