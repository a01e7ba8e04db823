"""What a tensor is for: its role, read from its GGUF name."""

import re
from dataclasses import dataclass

_BLOCK = re.compile(r"(?:dec\.|enc\.)?blk\.(\d{1,9})\.(.+)", re.ASCII)

# The first pattern that a name begins with or, after a *, holds anywhere.
_OUTSIDE = (
    ("per_layer_token_embd", "per_layer_embedding"),
    ("*norm", "norm"),
    ("token_embd", "embedding"),
    ("output.", "output"),
    ("per_layer_", "per_layer"),
    ("altup_", "per_layer"),
)
_INSIDE = (
    ("ffn_gate_inp", "router"),
    ("ffn_gate_tid2eid", "router"),
    ("exp_probs_b", "router"),
    ("ple_", "per_layer"),
    ("altup_", "per_layer"),
    ("laurel_", "per_layer"),
    ("*norm", "norm"),
    ("*scale", "norm"),
    ("nextn.embed_tokens", "embedding"),
    ("nextn.shared_head_head", "output"),
    ("ffn_down_exps", "experts_down"),
    ("ffn_gate_up_exps", "experts_gate_up"),
    ("*_exps", "experts"),
    ("*_chexps", "experts"),  # of a group of experts
    ("*_shexp", "shared"),
    ("attn_output", "attention_output"),
    ("vis_attn_output", "attention_output"),
    ("attn_o.", "attention_output"),
    ("attn_", "attention"),
    ("cross_attn_", "attention"),
    ("vis_attn_", "attention"),
    ("indexer", "attention"),
    ("ssm_", "recurrent"),
    ("shortconv.", "recurrent"),
    ("time_mix_", "recurrent"),
    ("inp_gate.", "per_layer"),
    ("proj.", "per_layer"),
    ("ffn", "dense"),
    ("channel_mix_", "dense"),
    ("vis_", "dense"),
)


@dataclass(frozen=True)
class Role:
    """A tensor's role, and its block (None outside the blocks)."""

    name: str
    layer: int | None

    @property
    def is_expert(self) -> bool:
        """Whether this is a stack of routed experts."""
        return self.name.startswith("experts")

    @property
    def is_lookup(self) -> bool:
        """Whether a token reads one row: no matrix product, so no importance is collected."""
        return self.name in ("embedding", "per_layer_embedding")


def role_of(name: str) -> Role:
    """The role of a GGUF tensor name, of any architecture."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        return Role(_first(_OUTSIDE, name), None)
    return Role(_first(_INSIDE, match[2]), int(match[1]))


def _first(patterns: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, role in patterns:
        if pattern[1:] in name if pattern[0] == "*" else name.startswith(pattern):
            return role
    return "other"
