"""Models that exist as metadata alone: the shapes of real ones, and what llama.cpp makes of them.

No weight is read or allocated, so a model of any size can be asked for its caches and buffers.
"""

import ctypes
from pathlib import Path
from typing import Any

from gemcut import ggml
from gemcut.engine import Memory, ModelOptions
from gemcut.gguf_file import Value
from gemcut.gguf_layout import header
from gemcut.llama.library import log, require
from gemcut.llama.model import Model
from gemcut.llama.params import model_params

Metadata = dict[str, Value]

# Enough for every architecture, of a size that is planned in a moment.
BASE: dict[str, Any] = {
    "context_length": 4096,
    "embedding_length": 256,
    "block_count": 6,
    "feed_forward_length": 384,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "vocab_size": 64,
    "leading_dense_block_count": 1,
    "expert_count": 2,
    "expert_used_count": 1,
    "expert_shared_count": 1,
    "expert_feed_forward_length": 64,
    "expert_shared_feed_forward_length": 64,
    "expert_gating_func": 2,
    "rope.dimension_sections": [8, 8, 8, 8],
}
MLA = {
    "attention.head_count_kv": 1,
    "attention.key_length": 96,
    "attention.value_length": 64,
    "attention.key_length_mla": 48,
    "attention.value_length_mla": 32,
    "attention.kv_lora_rank": 64,
    "attention.q_lora_rank": 64,
    "rope.dimension_count": 32,
}
# Gemma 4 26B-A4B, as far as caches depend on it.
REAL = {
    "block_count": 30,
    "embedding_length": 2816,
    "attention.head_count": 16,
    "attention.head_count_kv": [8, 8, 8, 8, 8, 2] * 5,
    "attention.key_length": 512,
    "attention.value_length": 512,
    "attention.key_length_swa": 256,
    "attention.value_length_swa": 256,
    "attention.sliding_window": 1024,
    "attention.sliding_window_pattern": [True, True, True, True, True, False] * 5,
    "attention.shared_kv_layers": 0,
}
PLAIN = {
    "leading_dense_block_count": 0,
    "expert_shared_count": 0,
    "expert_shared_feed_forward_length": 0,
    "attention.key_length": 128,
    "attention.value_length": 128,
}
GEMMA_26B = REAL | {
    "feed_forward_length": 2112,
    "expert_count": 128,
    "expert_used_count": 8,
    "expert_feed_forward_length": 704,
    "embedding_length_per_layer_input": 0,
    "rope.freq_base_swa": 10000.0,
}
# What is published of the models, and of a Gemma 4 of 120B weights what one would look like.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma4-26b": ("gemma4", PLAIN | GEMMA_26B),
    "gemma4-120b": (
        "gemma4",
        PLAIN
        | GEMMA_26B
        | {
            "block_count": 48,
            "embedding_length": 4096,
            "feed_forward_length": 8192,
            "expert_feed_forward_length": 1536,
            "attention.head_count": 32,
            "attention.head_count_kv": [8, 8, 8, 8, 8, 2] * 8,
            "attention.sliding_window_pattern": [True, True, True, True, True, False] * 8,
        },
    ),
    "qwen3-30b": (
        "qwen3moe",
        PLAIN
        | {
            "block_count": 48,
            "embedding_length": 2048,
            "feed_forward_length": 6144,
            "expert_count": 128,
            "expert_used_count": 8,
            "expert_feed_forward_length": 768,
            "attention.head_count": 32,
            "attention.head_count_kv": 4,
        },
    ),
    "gpt-oss-120b": (
        "gpt-oss",
        PLAIN
        | {
            "block_count": 36,
            "embedding_length": 2880,
            "feed_forward_length": 2880,
            "expert_count": 128,
            "expert_used_count": 4,
            "expert_feed_forward_length": 2880,
            "attention.head_count": 64,
            "attention.head_count_kv": 8,
            "attention.key_length": 64,
            "attention.value_length": 64,
            "attention.sliding_window": 128,
        },
    ),
    "deepseek-v2-lite": (
        "deepseek2",
        PLAIN
        | MLA
        | {
            "block_count": 27,
            "embedding_length": 2048,
            "feed_forward_length": 10944,
            "leading_dense_block_count": 1,
            "expert_count": 64,
            "expert_used_count": 6,
            "expert_shared_count": 2,
            "expert_feed_forward_length": 1408,
            "attention.head_count": 16,
            "attention.key_length": 576,
            "attention.value_length": 512,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "attention.kv_lora_rank": 512,
            "attention.q_lora_rank": None,
            "rope.dimension_count": 64,
        },
    ),
    "qwen3.5-35b": (
        "qwen35moe",
        PLAIN
        | {
            "block_count": 40,
            "embedding_length": 2048,
            "feed_forward_length": 5120,
            "expert_count": 256,
            "expert_used_count": 8,
            "expert_feed_forward_length": 512,
            "expert_shared_feed_forward_length": 512,
            "attention.head_count": 16,
            "attention.head_count_kv": 2,
            "attention.key_length": 256,
            "attention.value_length": 256,
            "rope.dimension_count": 64,
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 4096,
            "ssm.state_size": 128,
            "ssm.time_step_rank": 32,
            "ssm.group_count": 16,
        },
    ),
    "mixtral-8x7b": (
        "llama",
        PLAIN
        | {
            "block_count": 32,
            "embedding_length": 4096,
            "feed_forward_length": 14336,
            "expert_count": 8,
            "expert_used_count": 2,
            "expert_feed_forward_length": None,
            "attention.head_count": 32,
            "attention.head_count_kv": 8,
        },
    ),
    "dense-70b": (
        "llama",
        PLAIN
        | {
            "block_count": 80,
            "embedding_length": 8192,
            "feed_forward_length": 28672,
            "expert_count": 0,
            "expert_used_count": 0,
            "attention.head_count": 64,
            "attention.head_count_kv": 8,
        },
    ),
}
KINDS = {bool: "bool", int: "u32", float: "f32", str: "str"}


def metadata_of(architecture: str, changes: dict[str, Any]) -> Metadata:
    """A model's metadata, with a vocabulary that llama.cpp makes no demands on."""
    tokens = [f"tok_{i}" for i in range(64)]
    found = {
        "general.architecture": Value("str", architecture),
        "tokenizer.ggml.model": Value("str", "test"),
        "tokenizer.ggml.tokens": Value("[str]", tokens),
        "tokenizer.ggml.scores": Value("[f32]", [0.0] * 64),
    }
    for key, data in (BASE | changes).items():
        kind = f"[{KINDS[type(data[0])]}]" if isinstance(data, list) else KINDS[type(data)]
        found[f"{architecture}.{key}"] = Value(kind, data)
    return found


def metadata_for(name: str) -> Metadata:
    """The metadata of one of `SHAPES`, without what it does not have."""
    architecture, changes = SHAPES[name]
    metadata = metadata_of(architecture, {k: v for k, v in changes.items() if v is not None})
    for key in (key for key, value in changes.items() if value is None):
        metadata.pop(f"{architecture}.{key}", None)
    return metadata


class _InitParams(ctypes.Structure):
    """`struct gguf_init_params` of gguf.h."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


def load(metadata: Metadata, path: Path, overrides: tuple[tuple[str, str], ...] = ()) -> Model:
    """The model that llama.cpp makes of metadata alone; its tensors are not allocated."""
    path.write_bytes(header(metadata, []))
    c, base = require(), ggml.library("ggml-base")
    base.gguf_init_from_file.restype = ctypes.c_void_p
    base.gguf_init_from_file.argtypes = [ctypes.c_char_p, _InitParams]
    base.gguf_free.argtypes = [ctypes.c_void_p]
    parsed = base.gguf_init_from_file(str(path).encode(), _InitParams(True, None))
    options = ModelOptions(no_alloc=True, load_mode="none", overrides=overrides)
    params, kept = model_params(c, options)
    params.load_mtp = True  # what is skipped would have to be in the file
    fill = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(lambda tensor, data: None)
    mark, init = log.count, c._lib.llama_model_init_from_user
    init.restype, init.argtypes = ctypes.c_void_p, [*[ctypes.c_void_p] * 3, type(params)]
    handle = init(parsed, ctypes.cast(fill, ctypes.c_void_p), None, params)
    base.gguf_free(parsed)
    del kept
    assert handle, log.errors(mark)
    return Model(handle, options, Memory())
