"""Cache sizes: llama.cpp's own, asked for models that exist as metadata alone."""

from typing import Any

import pytest

from gemcut.engine import ContextOptions, Memory
from gemcut.errors import GGUFError
from gemcut.gguf_file import GGUFFile
from gemcut.kv_cache import KVCache
from gemcut.kv_layout import kv_layout
from gemcut.llama.context import Context
from gemcut.llama.memory import probe
from tests.weightless import MLA, REAL, load, metadata_of

WINDOW = {"attention.sliding_window": 256}
SSM = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 512,
    "ssm.state_size": 32,
    "ssm.time_step_rank": 16,
    "ssm.group_count": 2,
}
DELTA = {**SSM, "ssm.inner_size": 256, "ssm.time_step_rank": 8}
SCALES = {"residual_scale": 1.0, "embedding_scale": 1.0, "attention.scale": 1.0, "logit_scale": 1.0}
ALTERNATE = [2, 0, 2, 0, 0, 2]
KDA = {
    **MLA,
    "attention.head_count_kv": [1, 0, 1, 0, 0, 1],
    "ssm.conv_kernel": 4,
    "kda.head_dim": 32,
    "kda.gate_lower_bound": -5.0,
    "kda.safe_gate": True,
}
INDEXER = {
    "attention.indexer.head_count": 2,
    "attention.indexer.key_length": 64,
    "attention.indexer.top_k": 64,
    "attention.indexer.block_size": 4,
    "attention.indexer.local_blocks": 1,
}

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3moe": {"attention.key_length": 128, "attention.value_length": 128},
    "glm4moe": {},
    "granitemoe": SCALES,
    "minimax-m2": {},
    "gpt-oss": WINDOW,
    "gemma2": WINDOW,
    "gemma3": {**WINDOW, "attention.sliding_window_pattern": 3},
    "gemma4": {
        **WINDOW,
        "attention.head_count_kv": [2, 2, 2, 1, 2, 1],
        "attention.key_length": 128,
        "attention.value_length": 128,
        "attention.key_length_swa": 64,
        "attention.value_length_swa": 64,
        "attention.sliding_window_pattern": [True, True, True, False, True, False],
        "attention.shared_kv_layers": 2,
        "embedding_length_per_layer_input": 32,
        "rope.freq_base_swa": 10000.0,
    },
    "gemma3n": {"block_count": 22, **WINDOW, "embedding_length_per_layer_input": 32},
    "llama4": {"attention.sliding_window": 300, "interleave_moe_layer_step": 2},
    "smallthinker": WINDOW,
    "cohere2": {**WINDOW, "logit_scale": 1.0},
    "cohere2moe": {**WINDOW, "logit_scale": 1.0},
    "mellum": WINDOW,
    "plamo3": WINDOW,
    "afmoe": WINDOW,
    "exaone-moe": WINDOW,
    "laguna": WINDOW,
    "mimo2": {
        **WINDOW,
        "attention.sliding_window_pattern": [0, 1, 1, 0, 1, 1],
        "attention.value_length": 32,
    },
    "step35": {
        **WINDOW,
        "attention.sliding_window_pattern": [0, 1, 1, 0, 1, 1],
        "nextn_predict_layers": 1,
    },
    "olmo2": WINDOW,
    "deepseek2": MLA,
    "deepseek32": {**MLA, **INDEXER},
    "glm-dsa": {**MLA, **INDEXER, "attention.indexer.types": [1, 0, 1, 0, 1, 1]},
    "minimax-m3": {**INDEXER, "rope.dimension_count": 32},
    "qwen3next": DELTA,
    "qwen35moe": {**DELTA, "full_attention_interval": 3, "nextn_predict_layers": 1},
    "bailingmoe3": {**KDA, "nextn_predict_layers": 1},
    "granitehybrid": {**SSM, **SCALES, "attention.head_count_kv": ALTERNATE},
    "jamba": {**SSM, "ssm.group_count": 0, "attention.head_count_kv": ALTERNATE},
    "nemotron_h": {
        **SSM,
        "attention.head_count_kv": [2, 0, 0, 2, 0, 0],
        "feed_forward_length": [0, 0, 384, 0, 0, 384],
    },
    "nemotron_h_moe": {
        **SSM,
        "attention.head_count_kv": [2, 0, 0, 2, 0, 2],
        "feed_forward_length": [0, 0, 384, 0, 384, 0],
        "nextn_predict_layers": 1,
    },
    "falcon-h1": SSM,
    "lfm2moe": {"shortconv.l_cache": 3, "attention.head_count_kv": ALTERNATE},
    "mamba2": {**SSM, "attention.head_count": 0, "attention.head_count_kv": 0},
    "rwkv7": {
        "attention.head_count": 0,
        "attention.head_count_kv": 0,
        "wkv.head_size": 64,
        "attention.decay_lora_rank": 32,
        "attention.iclr_lora_rank": 32,
        "attention.value_residual_mix_lora_rank": 32,
        "attention.gate_lora_rank": 32,
    },
}
CONTEXTS = [
    ContextOptions(n_ctx=300),
    ContextOptions(n_ctx=3000, n_ubatch=100),
    ContextOptions(n_ctx=2048, n_seq=3, type_k="q8_0", type_v="q8_0"),
    ContextOptions(n_ctx=2048, n_seq=2, kv_unified=True, n_batch=64),
    ContextOptions(n_ctx=1024, swa_full=True),
    ContextOptions(n_ctx=1024, flash_attention=False),
]


def check(layout: KVCache | None, memory: Memory, options: ContextOptions) -> None:
    """The predicted bytes are those that llama.cpp logs, which rounds to 0.01 MiB."""
    assert layout is not None
    sizes = layout.sizes(options)
    for kind in ("full", "swa", "recurrent"):
        logged = sum(cache.kind == kind for cache in memory.caches)
        tolerance = 0.005 * 2**20 * max(1, logged) + 1
        assert getattr(sizes, kind) == pytest.approx(memory.cache_bytes(kind), abs=tolerance), kind


@pytest.mark.parametrize("architecture", MODELS)
def test_every_kind_of_cache_is_llama_cpps(architecture, tmp_path):
    """Over kinds of attention, and over what a context may be asked for."""
    metadata = metadata_of(architecture, MODELS[architecture])
    layout = kv_layout(architecture, metadata)

    with load(metadata, tmp_path / "model.gguf") as model:
        for options in CONTEXTS:
            with Context(model, options) as context:
                check(layout, context.memory, options)


def test_the_probe_agrees_on_the_demos_file(q4_k_m):
    """A real file, loaded as it would run."""
    with GGUFFile(q4_k_m) as file:
        layout = kv_layout("gemma4", file.metadata)
    for options in CONTEXTS[1:4]:
        check(layout, probe(q4_k_m, context=options), options)


@pytest.mark.parametrize(
    "tokens, kind, mebibytes",
    [
        (8, "f16", 460),
        (32, "f16", 940),
        (128, "f16", 2860),
        (256, "f16", 5420),
        (32, "q8_0", 499.4),
    ],
)
def test_gemma_4_26b_takes_what_was_measured(tokens, kind, mebibytes):
    """20 KiB per token where the context is kept, 204,800 bytes per cell of the windows; the
    totals were read out of llama.cpp's log for the real model's metadata."""
    layout = kv_layout("gemma4", metadata_of("gemma4", REAL))
    assert layout is not None

    assert layout.per_token() == 20 * 1024
    assert layout.per_token(sliding=True) == 204_800
    sizes = layout.sizes(ContextOptions(n_ctx=tokens << 10, type_k=kind, type_v=kind))
    assert sizes.total == pytest.approx(mebibytes * 2**20, rel=1e-4)


def test_windows_stop_growing(tmp_path):
    """Past the window, a longer context costs the other blocks alone."""
    layout = kv_layout("gemma4", metadata_of("gemma4", REAL))
    assert layout is not None
    short, long = (layout.sizes(ContextOptions(n_ctx=n << 10, n_batch=512)) for n in (32, 64))

    assert long.swa == short.swa
    assert long.full == 2 * short.full


@pytest.mark.parametrize("architecture", ["deepseek4", "hrm_text"])
def test_what_is_not_known_is_not_guessed(architecture):
    assert kv_layout(architecture, metadata_of(architecture, {})) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"block_count": 1 << 20},
        {"attention.head_count_kv": [2, 2]},
        {"attention.head_count": "four"},
        {"embedding_length": 0.5},
    ],
)
def test_damaged_metadata_is_refused(changes):
    """Numbers off a disk neither allocate nor pass for others."""
    with pytest.raises(GGUFError, match=f"llama.{next(iter(changes))}"):
        kv_layout("llama", metadata_of("llama", changes))
