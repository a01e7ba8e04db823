"""How much an error in a tensor of some role is believed to cost before anything is measured."""

from gemcut.roles import Role

# KL divergence per unit of a tensor's relative squared error, less the floor that any change costs.
# Round numbers between those of three small models that were probed, which agree to a factor of
# about two, and of published single-tensor measurements (Qwen3.6-35B-A3B, every tensor alone at two
# bits). It is the floor that falls with depth: without it a block's depth tells nothing. A
# measurement on the model itself replaces them.
PRIORS = {
    "embedding": 0.2,
    "per_layer_embedding": 0.2,
    "output": 0.8,
    "attention_output": 0.05,
    "attention": 0.03,
    "recurrent": 0.03,
    "dense": 0.015,
    "shared": 0.015,
    "experts_down": 0.025,
    "experts_gate_up": 0.03,  # gate and up together
    "experts": 0.015,
    "per_layer": 0.03,
    "other": 0.03,
    "router": 0.0,  # never quantized, like the norms
    "norm": 0.0,
}


def prior(role: Role, tied: bool) -> float:
    """Believed KL divergence per unit of such a tensor's relative squared error."""
    cost = PRIORS[role.name]
    if role.name == "embedding" and role.layer is None and tied:
        cost += PRIORS["output"]  # it is read twice
    return cost
