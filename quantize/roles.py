"""What a tensor is for, and how much its error is believed to cost before anything is measured."""

import re
from dataclasses import dataclass

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")

# Cost in KL divergence of one tensor's error, relative to the others: the order of magnitude of
# published single-tensor measurements on a Mixture-of-Experts model (Qwen3.6-35B-A3B, every
# tensor alone at about two bits). A measurement on the model itself replaces them.
PRIORS = {
    "embedding": 0.033,
    "output": 0.112,
    "attention_output": 0.0057,
    "attention": 0.0043,
    "dense": 0.0020,
    "experts_down": 0.0039,
    "experts_gate_up": 0.0069,  # gate and up together
    "experts": 0.0035,
    "other": 0.0040,
    "router": 0.0,  # never quantized, like the norms
    "norm": 0.0,
}
DEPTH_DECAY = 4.0  # a first block's error costs so many times a last block's: it is built upon


@dataclass(frozen=True)
class Role:
    """A tensor's role, and its block (None outside the blocks)."""

    name: str
    layer: int | None

    @property
    def is_expert(self) -> bool:
        """Whether this is a stack of routed experts."""
        return self.name.startswith("experts")

    def prior(self, layers: int, tied: bool) -> float:
        """Believed cost of this tensor's relative error, in arbitrary units of KL divergence."""
        cost = PRIORS[self.name]
        if self.name == "embedding" and tied:
            cost += PRIORS["output"]  # it is read twice
        if self.layer is None or layers < 2:
            return cost
        return float(cost * DEPTH_DECAY ** (0.5 - self.layer / (layers - 1)))


def role_of(name: str) -> Role:
    """The role of a GGUF tensor name."""
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return Role("embedding", None)
    if name == "output.weight":
        return Role("output", None)
    match = _BLOCK.fullmatch(name)
    if match is None:
        return Role("norm" if "norm" in name else "other", None)
    return Role(_block_role(match[2]), int(match[1]))


def _block_role(name: str) -> str:
    if name.startswith("ffn_gate_inp"):
        return "router"
    if "norm" in name or name.endswith(".scale"):
        return "norm"
    if "_exps" in name:
        for part in ("down", "gate_up"):
            if f"ffn_{part}_exps" in name:
                return f"experts_{part}"
        return "experts"
    if name.startswith("attn_output"):
        return "attention_output"
    if name.startswith("attn_"):
        return "attention"
    return "dense" if name.startswith("ffn_") else "other"
