"""Which tensors keep their precision, by name: llama.cpp's rules, which its loader relies on.

Two lists, since they are two: what every converted file holds in F32 (convert_hf_to_gguf.py), and
what is never cut below 16 bits (llama-quant.cpp).
"""

import re
from collections.abc import Sequence
from math import prod

_BLOCK = re.compile(r"^blk\.\d+\.")

_ALWAYS_F32 = frozenset(
    f"{name}.weight"
    for name in (
        "ffn_gate_inp ffn_gate_inp_shexp ssm_conv1d ssm_conv1d_q ssm_conv1d_k ssm_conv1d_v "
        "shortconv.conv altup_correct_coef altup_predict_coef indexer.proj"
    ).split()
)

_NEVER_QUANTIZED = (
    "_norm.weight ffn_gate_inp.weight ffn_gate_tid2eid.weight altup laurel per_layer_model_proj "
    "ssm_conv1d shortconv.conv.weight indexer.k_proj.weight indexer.q_proj.weight "
    "time_mix_first.weight time_mix_w0.weight time_mix_w1.weight time_mix_w2.weight "
    "time_mix_v0.weight time_mix_v1.weight time_mix_v2.weight time_mix_a0.weight "
    "time_mix_a1.weight time_mix_a2.weight time_mix_g1.weight time_mix_g2.weight "
    "time_mix_decay_w1.weight time_mix_decay_w2.weight time_mix_lerp_fused.weight "
    "attn_rel_b.weight .position_embd sam.pos_embd sam.neck."
).split()
_NEVER_QUANTIZED_WHOLE = frozenset({"position_embd.weight", "token_types.weight"})


def stays_f32(name: str, dimensions: int) -> bool:
    """Whether a converted file holds this tensor in F32, whatever type is asked for."""
    if dimensions < 2 or not name.endswith(".weight") or name.endswith("_norm.weight"):
        return True
    return _BLOCK.sub("", name) in _ALWAYS_F32


def is_quantizable(name: str, shape: Sequence[int]) -> bool:
    """Whether llama.cpp would cut this tensor at all; to it, one row is a vector."""
    if prod(shape[:-1]) < 2 or not name.endswith("weight") or name in _NEVER_QUANTIZED_WHOLE:
        return False
    return not any(part in name for part in _NEVER_QUANTIZED)
