"""GLM-4.7-Flash: DeepSeek-V3's attention and experts, with the layer for speculative decoding.

The published config does not say that routing is by a sigmoid, which llama.cpp then knows by the
numbers of layers and tokens; these are others here, so the config says it.
"""

from families.case import Case
from families.deepseek_v3 import CASES as DEEPSEEK
from families.deepseek_v3 import LAYERS, nextn

OTHERS = ("bos_token_id", "rope_scaling", "rope_theta")
VOCABULARY = 704

CASES = {
    "glm4_moe_lite": Case(
        config={
            **{k: v for k, v in DEEPSEEK["deepseek_v3"].config.items() if k not in OTHERS},
            "architectures": ["Glm4MoeLiteForCausalLM"],
            "eos_token_id": [640, 647, 649],
            "model_type": "glm4_moe_lite",
            "n_group": 1,
            "pad_token_id": 640,
            "partial_rotary_factor": 1.0,
            "rms_norm_eps": 1e-05,
            "routed_scaling_factor": 1.8,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "topk_group": 1,
            "vocab_size": VOCABULARY,
        },
        tokenizer="glm4",
        extra={
            key: (VOCABULARY, *shape[1:])
            if key.endswith(("embed_tokens.weight", "head.weight"))
            else shape
            for key, shape in nextn().items()
        },
        dtypes={r".*e_score_correction_bias": "F32"},
        unused=rf"model\.layers\.{LAYERS}\..*",
    )
}
