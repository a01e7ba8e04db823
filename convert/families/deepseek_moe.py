"""DeepSeek's mixture of experts, which other families took over, and its predicting blocks.

The first blocks are dense; in the others a router chooses among the routed experts while the shared
ones see every token. Behind the last block may be some that predict tokens further ahead ("MTP",
"nextn"), for speculative decoding.
"""

from collections.abc import Mapping

from gemcut.convert.families.common import (
    BLOCK,
    OUT,
    dense_rules,
    expert_rules,
    expert_sizes,
    norm,
    optional,
)
from gemcut.convert.family import Config, Field, Rule
from gemcut.convert.source import Source
from gemcut.errors import CheckpointError

_PRESENT = "predicting_blocks"
_MOST_PREDICTING = 64  # more than anybody has trained: this number comes off a disk


def dense_blocks(config: Config) -> int:
    """The number of dense blocks before those with experts, in either spelling of the config."""
    if config.get("first_k_dense_replace") is None and config.get("mlp_layer_types"):
        return config.layers_of("mlp_layer_types").count("dense")
    return int(config.get("first_k_dense_replace") or 0)


FIELDS = (
    Field("leading_dense_block_count", "u32", dense_blocks),
    Field("expert_feed_forward_length", "u32", lambda c: c.positive("moe_intermediate_size")),
    Field("expert_shared_count", "u32", lambda c: c.get("n_shared_experts") or 0),
    Field("expert_weights_scale", "f32", optional("routed_scaling_factor")),
)


def sizes(config: Config, layer: int) -> Mapping[str, int]:
    """Named sizes of one block's dense MLP or experts."""
    if config.get("moe_layer_freq", 1) != 1:
        raise CheckpointError(
            f"config.json: moe_layer_freq is {config['moe_layer_freq']}, wanted 1: llama.cpp has "
            "experts in every block after the dense ones"
        )
    routed = int(layer >= dense_blocks(config))
    width = config.positive("moe_intermediate_size")
    return {
        "dense": config.positive("intermediate_size"),
        "is_dense": 1 - routed,
        "is_routed": routed,
        **expert_sizes(config),
        "shared": routed * width * (config.get("n_shared_experts") or 0),
    }


def rules(biased: bool = True) -> tuple[Rule, ...]:
    """The tensors of a dense MLP or of a router and its experts.

    Args:
        biased: whether the router has a bias that counts when experts are chosen, and only then.
    """
    gate, router = BLOCK + "mlp.gate.", OUT + "ffn_gate_inp.weight"
    bias = Rule(
        gate + "e_score_correction_bias", OUT + "exp_probs_b.bias", ("experts",), "is_routed"
    )
    return (
        *dense_rules(when="is_dense"),
        Rule(gate + "weight", router, ("experts", "hidden"), "is_routed"),
        *([bias] if biased else []),
        *expert_rules(when="is_routed"),
        *dense_rules("mlp.shared_experts.", "_shexp", "shared", when="shared"),
    )


def predicting(config: Config) -> int:
    """The number of blocks that predict tokens further ahead."""
    count = int(config.get("num_nextn_predict_layers") or 0)
    if not 0 <= count <= _MOST_PREDICTING:
        raise CheckpointError(
            f"config.json: num_nextn_predict_layers is {count}, wanted 0 to {_MOST_PREDICTING}"
        )
    return count


def present(config: Config, sources: Mapping[str, Source]) -> Mapping[str, int]:
    """How many of them the checkpoint has: all or none, since transformers saves none."""
    found = any(name.endswith(".eh_proj.weight") for name in sources)
    return {_PRESENT: predicting(config) if found else 0}


def layers(config: Config) -> int:
    """The number of blocks that the checkpoint has."""
    return config.positive("num_hidden_layers") + int(config[_PRESENT])


def block_count(config: Config) -> int:
    """The number of blocks that the model has; llama.cpp does without those that predict."""
    return config.positive("num_hidden_layers") + predicting(config)


def predicting_sizes(config: Config, layer: int) -> Mapping[str, int]:
    """Named sizes of what such a block has besides."""
    return {
        "predicts": int(layer >= config.positive("num_hidden_layers")),
        "two_hidden": 2 * config.positive("hidden_size"),
    }


def predicting_rules() -> tuple[Rule, ...]:
    """What such a block has besides; an embedding and a head of its own may be left out."""
    table, when = ("vocabulary", "hidden"), "predicts"
    return (
        Rule(
            BLOCK + "eh_proj.weight", OUT + "nextn.eh_proj.weight", ("hidden", "two_hidden"), when
        ),
        norm("enorm", "nextn.enorm", when=when),
        norm("hnorm", "nextn.hnorm", when=when),
        norm("shared_head.norm", "nextn.shared_head_norm", when=when, optional=True),
        *(
            Rule(f"{BLOCK}{source}.weight", f"{OUT}nextn.{target}.weight", table, when, True)
            for source, target in (
                ("embed_tokens", "embed_tokens"),
                ("shared_head.head", "shared_head_head"),
            )
        ),
    )
