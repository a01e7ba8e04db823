"""gpt-oss (20b, 120b): experts in MXFP4, biases everywhere, attention sinks, yarn.

Gate and up projections are one tensor with their rows by turns. As published, experts are blocks of
MXFP4 [experts, outputs, inputs], whose bytes are kept; unquantized ones, as transformers saves
them, are [experts, inputs, outputs].

llama.cpp has built in what no metadata says: experts that clamp at 7, and a yarn whose borders are
whole numbers. The published configs say `truncate: false`, so its logits are a bit off.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gemcut.convert.families.common import (
    BLOCK,
    MODEL_FIELDS,
    OUT,
    attention_rules,
    attention_sizes,
    expert_sizes,
    norm,
    outer_rules,
)
from gemcut.convert.family import Config, Family, Field, Rule
from gemcut.convert.source import Source
from gemcut.convert.transforms import (
    Transform,
    even_columns,
    even_rows,
    odd_columns,
    odd_rows,
    then,
    transposed,
)
from gemcut.convert.vocabulary import reader
from gemcut.errors import CheckpointError

_PACKED = "gemcut_packed_experts"  # not in any config.json: what the tensors tell
_BUILT_IN = {"swiglu_limit": 7.0, "swiglu_alpha": 1.702}


def sizes(config: Config, layer: int) -> Mapping[str, int]:
    """Named sizes of one block, as the rules' shapes use them."""
    return {
        **attention_sizes(config),
        **expert_sizes(config, "intermediate_size"),
        "packed": int(config[_PACKED]),
        "loose": int(not config[_PACKED]),
    }


def packed_by_tensors(_: Config, tensors: Mapping[str, Source]) -> Mapping[str, Any]:
    """Whether the experts are in MXFP4."""
    found = (s for name, s in tensors.items() if name.endswith(".mlp.experts.gate_up_proj"))
    return {_PACKED: any(source.open().type == "mxfp4" for source in found)}


def _is_sliding(config: Config) -> list[bool]:
    """For every block whether its attention has a window."""
    if config.get("layer_types") is None:
        return _built_in_pattern(config)
    return [kind == "sliding_attention" for kind in config.layers_of("layer_types")]


def _built_in_pattern(config: Config) -> list[bool]:
    """llama.cpp's, where the file has none: the first block has a window, the next one has not."""
    return [layer % 2 == 0 for layer in range(config.positive("num_hidden_layers"))]


def _pattern(config: Config) -> list[bool] | None:
    found = _is_sliding(config)
    return None if found == _built_in_pattern(config) else found


def _block_count(config: Config) -> int:
    for field, wanted in _BUILT_IN.items():
        if config.get(field, wanted) != wanted:
            raise CheckpointError(
                f"config.json: {field} is {config[field]!r}; llama.cpp has {wanted} built in"
            )
    return config.positive("num_hidden_layers")


def _both(
    source: str, shape: tuple[str, ...], ending: str, turns: tuple[Transform, Transform], when: str
) -> tuple[Rule, Rule]:
    """Gate and up projection, from one tensor that has them by turns."""
    name = f"{BLOCK}mlp.experts.{source}"
    gate, up = (
        Rule(name, f"{OUT}ffn_{part}_exps.{ending}", shape, when, transform=turn)
        for part, turn in zip(("gate", "up"), turns, strict=True)
    )
    return gate, up


_DOWN = BLOCK + "mlp.experts.down_proj"

EXPERTS = (
    *_both(
        "gate_up_proj",
        ("experts", "gate_and_up", "hidden"),
        "weight",
        (even_rows, odd_rows),
        "packed",
    ),
    *_both(
        "gate_up_proj",
        ("experts", "hidden", "gate_and_up"),
        "weight",
        (then(transposed, even_rows), then(transposed, odd_rows)),
        "loose",
    ),
    *_both(
        "gate_up_proj_bias",
        ("experts", "gate_and_up"),
        "bias",
        (even_columns, odd_columns),
        "experts",
    ),
    Rule(_DOWN, OUT + "ffn_down_exps.weight", ("experts", "hidden", "expert"), "packed"),
    Rule(
        _DOWN,
        OUT + "ffn_down_exps.weight",
        ("experts", "expert", "hidden"),
        "loose",
        transform=transposed,
    ),
    Rule(_DOWN + "_bias", OUT + "ffn_down_exps.bias", ("experts", "hidden")),
)

FAMILY = Family(
    name="gpt-oss",
    title="gpt-oss",
    architectures=("GptOssForCausalLM",),
    model_types=("gpt_oss",),
    prefixes=("model.",),
    skipped={},
    rules=(
        *outer_rules(),
        norm("input_layernorm", "attn_norm"),
        *(replace(rule, optional=False) for rule in attention_rules(biases=True)),
        Rule(BLOCK + "self_attn.sinks", OUT + "attn_sinks.weight", ("heads",)),
        norm("post_attention_layernorm", "post_attention_norm"),
        Rule(BLOCK + "mlp.router.weight", OUT + "ffn_gate_inp.weight", ("experts", "hidden")),
        Rule(BLOCK + "mlp.router.bias", OUT + "ffn_gate_inp.bias", ("experts",)),
        *EXPERTS,
    ),
    fields=(
        Field("block_count", "u32", _block_count),
        *MODEL_FIELDS,
        Field("attention.sliding_window", "u32", lambda c: c.positive("sliding_window")),
        Field("attention.sliding_window_pattern", "[bool]", _pattern),
        Field("expert_feed_forward_length", "u32", lambda c: c.positive("intermediate_size")),
    ),
    sizes=sizes,
    vocabulary=reader("gpt-4o"),
    inferred=packed_by_tensors,
)
