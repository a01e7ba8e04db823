"""Gemma 4's text models: E2B, E4B, 12B, 31B and the Mixture-of-Experts 26B-A4B.

Every block has attention and a dense MLP; with experts, those stand beside the MLP. Fused experts,
gate rows before up rows, stay fused. The E models have an embedding for each block besides the one
for all: rows of all blocks' inputs, one after the other.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.families.common import BLOCK, OUT, dense_rules, norm
from gemcut.convert.families.gemma4_config import EXPERTS_APART, FIELDS, rope_factors, sizes
from gemcut.convert.family import Config, Family, Rule
from gemcut.convert.source import Source
from gemcut.convert.vocabulary import gemma_reader
from gemcut.errors import CheckpointError
from gemcut.gguf_file import Value

# Written as plain text, since chat parsers read them (as llama.cpp's converter does).
VISIBLE_TOKENS = frozenset(
    "<|channel> <channel|> <|tool_call> <tool_call|> <|tool_response> <tool_response|>".split()
    + ['<|"|>']
)

_SINGLE = BLOCK + "experts.{expert}."
_WIDE, _NARROW = ("expert", "hidden"), ("hidden", "expert")

_OUTER_RULES = (
    Rule("embed_tokens.weight", "token_embd.weight", ("vocabulary", "hidden")),
    Rule("norm.weight", "output_norm.weight", ("hidden",)),
    Rule("lm_head.weight", None),  # tied to the embedding
    Rule(
        "embed_tokens_per_layer.weight",
        "per_layer_token_embd.weight",
        ("vocabulary", "all_inputs"),
        when="inputs",
    ),
    Rule(
        "per_layer_model_projection.weight",
        "per_layer_model_proj.weight",
        ("all_inputs", "hidden"),
        when="inputs",
    ),
    Rule(
        "per_layer_projection_norm.weight",
        "per_layer_proj_norm.weight",
        ("inputs",),
        when="inputs",
    ),
)


def _keys_or_values(source: str, target: str, shape: tuple[str, ...], *when: str) -> list[Rule]:
    """What a block has for itself; one that shares another's may have it all the same, unused.

    Args:
        when: the size that is not 0 where it is needed, and the one where it may be.
    """
    names = f"{BLOCK}self_attn.{source}.weight", f"{OUT}{target}.weight"
    needed, allowed = when
    return [Rule(*names, shape, needed), Rule(*names, shape, allowed, optional=True)]


_ATTENTION_RULES = (
    norm("input_layernorm", "attn_norm"),
    Rule(BLOCK + "self_attn.q_proj.weight", OUT + "attn_q.weight", ("queries", "hidden")),
    *_keys_or_values("k_proj", "attn_k", ("keys", "hidden"), "own_keys", "one"),
    *_keys_or_values("v_proj", "attn_v", ("keys", "hidden"), "own_values", "values"),
    Rule(BLOCK + "self_attn.o_proj.weight", OUT + "attn_output.weight", ("hidden", "queries")),
    norm("self_attn.q_norm", "attn_q_norm", "head"),
    *_keys_or_values("k_norm", "attn_k_norm", ("head",), "own_keys", "one"),
    norm("post_attention_layernorm", "post_attention_norm"),
)

_MLP_RULES = (
    norm("pre_feedforward_layernorm", "ffn_norm"),
    *dense_rules(),
    norm("post_feedforward_layernorm", "post_ffw_norm"),
)

_EXPERT_RULES = (
    norm("post_feedforward_layernorm_1", "post_ffw_norm_1", when="experts"),
    norm("pre_feedforward_layernorm_2", "pre_ffw_norm_2", when="experts"),
    norm("post_feedforward_layernorm_2", "post_ffw_norm_2", when="experts"),
    Rule(
        BLOCK + "router.proj.weight", OUT + "ffn_gate_inp.weight", ("experts", "hidden"), "experts"
    ),
    Rule(BLOCK + "router.scale", OUT + "ffn_gate_inp.scale", ("hidden",), "experts"),
    Rule(BLOCK + "router.per_expert_scale", OUT + "ffn_down_exps.scale", ("experts",), "experts"),
    Rule(
        BLOCK + "experts.gate_up_proj",
        OUT + "ffn_gate_up_exps.weight",
        ("experts", "gate_and_up", "hidden"),
        "fused_experts",
    ),
    Rule(
        BLOCK + "experts.down_proj",
        OUT + "ffn_down_exps.weight",
        ("experts", *_NARROW),
        "fused_experts",
    ),
    Rule(_SINGLE + "gate_proj.weight", OUT + "ffn_gate_exps.weight", _WIDE, "single_experts"),
    Rule(_SINGLE + "up_proj.weight", OUT + "ffn_up_exps.weight", _WIDE, "single_experts"),
    Rule(_SINGLE + "down_proj.weight", OUT + "ffn_down_exps.weight", _NARROW, "single_experts"),
)

_INPUT_RULES = (
    Rule(
        BLOCK + "per_layer_input_gate.weight",
        OUT + "inp_gate.weight",
        ("inputs", "hidden"),
        "inputs",
    ),
    Rule(
        BLOCK + "per_layer_projection.weight", OUT + "proj.weight", ("hidden", "inputs"), "inputs"
    ),
    norm("post_per_layer_input_norm", "post_norm", when="inputs"),
    Rule(BLOCK + "layer_scalar", OUT + "layer_output_scale.weight", ("one",)),
)


def _inferred(config: Config, sources: Mapping[str, Source]) -> Mapping[str, Any]:
    """Experts apart from each other, as where they are quantized one by one."""
    return {EXPERTS_APART: "layers.0.experts.0.gate_proj.weight" in sources}


FAMILY = Family(
    name="gemma4",
    title="Gemma 4",
    architectures=("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    model_types=("gemma4", "gemma4_text"),
    prefixes=("model.language_model.", "language_model.model.", "model.", ""),
    skipped={
        "model.vision_tower.": "vision",
        "model.embed_vision.": "vision",
        "model.vision_embedder.": "vision",
        "model.audio_tower.": "audio",
        "model.embed_audio.": "audio",
    },
    rules=(*_OUTER_RULES, *_ATTENTION_RULES, *_MLP_RULES, *_EXPERT_RULES, *_INPUT_RULES),
    fields=FIELDS,
    sizes=sizes,
    vocabulary=gemma_reader(VISIBLE_TOKENS),
    generated=rope_factors,
    inferred=_inferred,
)


def _suppressing(checkpoint: Checkpoint, size: int, pre: str | None = None) -> dict[str, Value]:
    """The vocabulary, with the tokens that must not be generated."""
    values = dict(FAMILY.vocabulary(checkpoint, size, pre))
    listed = checkpoint.json("generation_config.json", {}).get("suppress_tokens")
    if listed is None:
        return values
    if not isinstance(listed, list) or not all(type(n) is int and 0 <= n < size for n in listed):
        raise CheckpointError(
            f"{checkpoint.where}/generation_config.json: suppress_tokens is {listed!r:.60}, wanted "
            f"a list of numbers below {size}"
        )
    return values | {"tokenizer.ggml.suppress_tokens": Value("[i32]", listed)}


# 12B, whose images and sounds come without towers.
UNIFIED = replace(
    FAMILY,
    title="Gemma 4 Unified",
    architectures=("Gemma4UnifiedForConditionalGeneration", "Gemma4UnifiedForCausalLM"),
    model_types=("gemma4_unified", "gemma4_unified_text"),
    vocabulary=_suppressing,
)
