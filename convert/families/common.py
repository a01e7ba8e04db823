"""What most families share: the metadata of a transformer, rules for attention and for experts.

The metadata keys are those that llama.cpp's converter writes for every text model.
"""

from collections.abc import Callable
from typing import Any

from gemcut.convert.family import Config, Field, Rule
from gemcut.convert.transforms import Transform, first_half, second_half
from gemcut.errors import CheckpointError

SOFTMAX, SIGMOID = 1, 2  # llama.cpp's numbers of `expert_gating_func`

_GATING = {"softmax": SOFTMAX, "sigmoid": SIGMOID}
_SCALING = {"linear": "linear", "yarn": "yarn", "su": "longrope", "longrope": "longrope"}

BLOCK = "layers.{layer}."
OUT = "blk.{layer}."


def optional(*names: str) -> Callable[[Config], Any]:
    """Reads the first of these fields that is there; without any, the key is left out."""
    return lambda config: next((config[n] for n in names if config.get(n) is not None), None)


def head_size(config: Config) -> int:
    """Width of an attention head: its own field, or the share of the hidden size."""
    if config.get("head_dim") is not None:
        return config.positive("head_dim")
    return config.positive("hidden_size") // config.positive("num_attention_heads")


def attention_sizes(config: Config) -> dict[str, int]:
    """Sizes that the rules for plain attention and for what is outside the blocks are made of."""
    heads, head = config.positive("num_attention_heads"), head_size(config)
    kv_heads = config.positive("num_key_value_heads", default=heads)
    return {
        "vocabulary": config.positive("vocab_size"),
        "hidden": config.positive("hidden_size"),
        "untied": untied(config),
        "heads": heads,
        "kv_heads": kv_heads,
        "head": head,
        "queries": heads * head,
        "keys": kv_heads * head,
    }


def expert_sizes(config: Config, width: str = "moe_intermediate_size") -> dict[str, int]:
    """Sizes that the rules for routed experts are made of; `width` is the field of an expert's."""
    return {
        "experts": config.positive("num_local_experts", "num_experts", "n_routed_experts"),
        "expert": config.positive(width),
        "gate_and_up": 2 * config.positive(width),
    }


def untied(config: Config) -> int:
    """1 if the output has weights of its own, 0 if it is the embedding."""
    return int(not config.get("tie_word_embeddings", False))


def rope_setting(kind: str, *names: str) -> Callable[[Config], Any]:
    """Reads a setting of a rotary scaling, for configs that have this kind of it."""

    def read(config: Config) -> Any:
        settings = config.rope()
        if _scaling(config) != kind:
            return None
        return next((settings[n] for n in names if settings.get(n) is not None), None)

    return read


def _scaling(config: Config) -> str | None:
    """The rotary scaling's name in GGUF, if there is one that stretches the context."""
    settings = config.rope()
    kind = _SCALING.get(str(settings["rope_type"]))
    return kind if kind == "longrope" or settings.get("factor") is not None else None


def _scaling_factor(config: Config) -> Any:
    return config.rope()["factor"] if _scaling(config) in ("linear", "yarn") else None


def _gating(config: Config) -> int | None:
    name = optional("scoring_func", "score_function", "score_func")(config)
    if name is None:
        return None
    if name not in _GATING:
        raise CheckpointError(f"config.json: gating {name!r}; wanted softmax or sigmoid")
    return _GATING[name]


ROPE_FIELDS = (
    Field("rope.freq_base", "f32", lambda c: c.rope()["rope_theta"]),
    Field("rope.scaling.type", "str", _scaling),
    Field("rope.scaling.factor", "f32", _scaling_factor),
    Field(
        "rope.scaling.original_context_length",
        "u32",
        rope_setting("yarn", "original_max_position_embeddings"),
    ),
    Field("rope.scaling.yarn_ext_factor", "f32", rope_setting("yarn", "extrapolation_factor")),
    Field(
        "rope.scaling.yarn_attn_factor",
        "f32",
        rope_setting("yarn", "attention_factor", "attn_factor"),
    ),
    Field("rope.scaling.yarn_beta_fast", "f32", rope_setting("yarn", "beta_fast")),
    Field("rope.scaling.yarn_beta_slow", "f32", rope_setting("yarn", "beta_slow")),
)

EXPERT_FIELDS = (
    Field(
        "expert_count",
        "u32",
        lambda c: c.positive("num_local_experts", "num_experts", "n_routed_experts"),
    ),
    Field(
        "expert_used_count",
        "u32",
        lambda c: c.positive("num_experts_per_tok", "num_experts_per_token"),
    ),
    Field("expert_group_count", "u32", optional("n_group")),
    Field("expert_group_used_count", "u32", optional("topk_group")),
    Field("expert_gating_func", "u32", _gating),
)

HEAD_SIZE_FIELDS = (
    Field("attention.key_length", "u32", optional("head_dim")),
    Field("attention.value_length", "u32", optional("head_dim")),
)

# Without a count of blocks, which some families change.
TEXT_FIELDS = (
    Field("context_length", "u32", optional("max_position_embeddings")),
    Field("embedding_length", "u32", lambda c: c.positive("hidden_size")),
    Field("feed_forward_length", "u32", optional("intermediate_size")),
    Field("attention.head_count", "u32", lambda c: c.positive("num_attention_heads")),
    Field("attention.head_count_kv", "u32", optional("num_key_value_heads")),
    Field("attention.layer_norm_rms_epsilon", "f32", optional("rms_norm_eps", "norm_eps")),
)

# Of a transformer with experts; a family adds its count of blocks and what else it has.
MODEL_FIELDS = (*TEXT_FIELDS, *ROPE_FIELDS, *EXPERT_FIELDS, *HEAD_SIZE_FIELDS)

BLOCK_COUNT = Field("block_count", "u32", lambda c: c.positive("num_hidden_layers"))


def outer_rules(turn_norm: Transform | None = None) -> tuple[Rule, ...]:
    """Embedding, last norm, and the output where it is not tied (size "untied")."""
    return (
        Rule("embed_tokens.weight", "token_embd.weight", ("vocabulary", "hidden")),
        Rule("norm.weight", "output_norm.weight", ("hidden",), transform=turn_norm),
        Rule("lm_head.weight", "output.weight", ("vocabulary", "hidden"), when="untied"),
        Rule("lm_head.weight", None),
    )


def attention_rules(
    turn_q: Transform | None = None, turn_k: Transform | None = None, biases: bool = False
) -> tuple[Rule, ...]:
    """Four projections, by sizes "queries" and "keys"; with optional biases where they exist."""
    rules = []
    for name, target, rows, columns, turn in (
        ("q_proj", "attn_q", "queries", "hidden", turn_q),
        ("k_proj", "attn_k", "keys", "hidden", turn_k),
        ("v_proj", "attn_v", "keys", "hidden", None),
        ("o_proj", "attn_output", "hidden", "queries", None),
    ):
        source, made = f"{BLOCK}self_attn.{name}", OUT + target
        rules.append(Rule(f"{source}.weight", f"{made}.weight", (rows, columns), transform=turn))
        if biases:
            rules.append(
                Rule(f"{source}.bias", f"{made}.bias", (rows,), optional=True, transform=turn)
            )
    return tuple(rules)


def norm(source: str, target: str, size: str = "hidden", **options: Any) -> Rule:
    """A norm of a block."""
    return Rule(f"{BLOCK}{source}.weight", f"{OUT}{target}.weight", (size,), **options)


def expert_rules(
    folder: str = "mlp.experts.",
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
    when: str | None = None,
) -> tuple[Rule, ...]:
    """Routed experts, one tensor each or fused with the gate's rows first, gate and up apart.

    By sizes "experts", "expert" (an expert's width), "gate_and_up" (twice that) and "hidden".
    """
    each = f"{BLOCK}{folder}{{expert}}."
    fused = f"{BLOCK}mlp.experts."
    wide, narrow = ("expert", "hidden"), ("hidden", "expert")
    both = ("experts", "gate_and_up", "hidden")
    return (
        Rule(f"{each}{gate}.weight", f"{OUT}ffn_gate_exps.weight", wide, when),
        Rule(f"{each}{up}.weight", f"{OUT}ffn_up_exps.weight", wide, when),
        Rule(f"{each}{down}.weight", f"{OUT}ffn_down_exps.weight", narrow, when),
        Rule(
            f"{fused}gate_up_proj", f"{OUT}ffn_gate_exps.weight", both, when, transform=first_half
        ),
        Rule(f"{fused}gate_up_proj", f"{OUT}ffn_up_exps.weight", both, when, transform=second_half),
        Rule(f"{fused}down_proj", f"{OUT}ffn_down_exps.weight", ("experts", *narrow), when),
    )


def dense_rules(
    folder: str = "mlp.", suffix: str = "", size: str = "dense", when: str | None = None
) -> tuple[Rule, ...]:
    """A gated MLP that every token goes through: dense blocks, or shared experts ("_shexp")."""
    source = f"{BLOCK}{folder}"
    return (
        Rule(f"{source}gate_proj.weight", f"{OUT}ffn_gate{suffix}.weight", (size, "hidden"), when),
        Rule(f"{source}up_proj.weight", f"{OUT}ffn_up{suffix}.weight", (size, "hidden"), when),
        Rule(f"{source}down_proj.weight", f"{OUT}ffn_down{suffix}.weight", ("hidden", size), when),
    )
