"""Random Gemma 4 MoE checkpoints in Hugging Face's form, small ones and one of the real size.

Names, shapes and config are written out by hand: this file's knowledge of the format is its own,
so that a mistake in the product's tables cannot hide behind the same mistake here.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

INDEX = "model.safetensors.index.json"
_BYTES = {"BF16": 2, "F16": 2, "F32": 4}  # all others that are written here take one


@dataclass(frozen=True)
class Recipe:
    """A checkpoint to be. Of the widths, 192 and 64 are like the real 2112 and 704: no multiples
    of 256."""

    layers: int = 2
    full_every: int = 2  # every so many blocks, one has full attention
    experts: int = 4
    hidden: int = 256
    heads: int = 4
    head: int = 64
    full_head: int = 128
    kv_heads: int = 2
    full_kv_heads: int = 1
    dense: int = 192
    expert: int = 64
    vocabulary: int = 2048
    dtype: str = "BF16"
    multimodal: bool = False  # Gemma4ForConditionalGeneration, with towers beside the text model
    per_layer_config: bool = False  # the newer spelling of the full-attention sizes
    shards: int = 1
    seed: int = 0

    def full(self, layer: int) -> bool:
        """Whether a block has full attention."""
        return (layer + 1) % self.full_every == 0

    @property
    def full_layers(self) -> list[int]:
        """The blocks with full attention."""
        return [layer for layer in range(self.layers) if self.full(layer)]


# google/gemma-4-26B-A4B
REAL = Recipe(
    layers=30,
    full_every=6,
    experts=128,
    hidden=2816,
    heads=16,
    head=256,
    full_head=512,
    kv_heads=8,
    full_kv_heads=2,
    dense=2112,
    expert=704,
    vocabulary=262144,
    multimodal=True,
)

# No such model was published: what one of 120B weights, 15B of them active, would look like.
LARGE = replace(
    REAL, layers=48, hidden=4096, heads=32, head=256, full_head=512, dense=8192, expert=1536
)


def build(folder: Path, donor: Path, recipe: Recipe = Recipe(), hollow: bool = False) -> Path:
    """Write the recipe's checkpoint into a new folder, with the tokenizer of another one.

    Args:
        hollow: the tensors are holes in the file: all zero, and they take no room.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(recipe), indent=2))
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        shutil.copyfile(donor / name, folder / name)
    tokenizer = json.loads((donor / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"unused{i}": i for i in range(len(vocabulary), recipe.vocabulary)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    names = sorted(shapes(recipe))
    arrays = {} if hollow else tensors(recipe)
    placed: dict[str, str] = {}
    for number in range(recipe.shards):
        shard = f"model-{number + 1:05}-of-{recipe.shards:05}.safetensors"
        path = folder / ("model.safetensors" if recipe.shards == 1 else shard)
        own = {name: shapes(recipe)[name] for name in names[number :: recipe.shards]}
        data = b"".join(encoded(arrays[name], recipe.dtype) for name in own if not hollow)
        size = write_safetensors(path, header(own, recipe.dtype), data)
        os.truncate(path, size)
        placed |= dict.fromkeys(own, path.name)
    if recipe.shards > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def config(recipe: Recipe) -> dict[str, Any]:
    """The config.json of a recipe."""
    kinds = {True: "full_attention", False: "sliding_attention"}
    text: dict[str, Any] = {
        "attention_k_eq_v": True,
        "bos_token_id": 2,
        "enable_moe_block": True,
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "head_dim": recipe.head,
        "hidden_size": recipe.hidden,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": recipe.dense,
        "layer_types": [kinds[recipe.full(layer)] for layer in range(recipe.layers)],
        "max_position_embeddings": 2048,
        "model_type": "gemma4_text",
        "moe_intermediate_size": recipe.expert,
        "num_attention_heads": recipe.heads,
        "num_experts": recipe.experts,
        "num_hidden_layers": recipe.layers,
        "num_key_value_heads": recipe.kv_heads,
        "num_kv_shared_layers": 0,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {
                "partial_rotary_factor": 0.25,
                "rope_theta": 1e6,
                "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
        "sliding_window": 128,
        "tie_word_embeddings": True,
        "top_k_experts": 2,
        "use_double_wide_mlp": False,
        "vocab_size": recipe.vocabulary,
    }
    if recipe.per_layer_config:
        sizes = {"head_dim": recipe.full_head, "num_key_value_heads": recipe.full_kv_heads}
        text["per_layer_config"] = {str(layer): sizes for layer in recipe.full_layers}
    else:
        text["global_head_dim"] = recipe.full_head
        text["num_global_key_value_heads"] = recipe.full_kv_heads
    if not recipe.multimodal:
        return {"architectures": ["Gemma4ForCausalLM"], **text}
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "model_type": "gemma4",
        "text_config": text,
        "vision_config": {"hidden_size": 32, "num_hidden_layers": 1},
    }


def shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """All tensors with their names in the checkpoint."""
    text: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (recipe.vocabulary, recipe.hidden),
        "norm.weight": (recipe.hidden,),
    }
    for layer in range(recipe.layers):
        text |= {f"layers.{layer}.{k}": shape for k, shape in _block(recipe, layer).items()}
    if not recipe.multimodal:
        return {f"model.{name}": shape for name, shape in text.items()}
    return {f"model.language_model.{name}": shape for name, shape in text.items()} | {
        "model.vision_tower.encoder.layers.0.mlp.gate_proj.linear.weight": (32, 32),
        "model.embed_vision.embedding_projection.weight": (recipe.hidden, 32),
        "model.audio_tower.layers.0.norm_out.weight": (32,),
        "model.embed_audio.embedding_projection.weight": (recipe.hidden, 32),
    }


def _block(r: Recipe, layer: int) -> dict[str, tuple[int, ...]]:
    head, kv_heads = (r.full_head, r.full_kv_heads) if r.full(layer) else (r.head, r.kv_heads)
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (r.hidden,),
        "self_attn.q_proj.weight": (r.heads * head, r.hidden),
        "self_attn.k_proj.weight": (kv_heads * head, r.hidden),
        "self_attn.o_proj.weight": (r.hidden, r.heads * head),
        "self_attn.q_norm.weight": (head,),
        "self_attn.k_norm.weight": (head,),
        "post_attention_layernorm.weight": (r.hidden,),
        "pre_feedforward_layernorm.weight": (r.hidden,),
        "mlp.gate_proj.weight": (r.dense, r.hidden),
        "mlp.up_proj.weight": (r.dense, r.hidden),
        "mlp.down_proj.weight": (r.hidden, r.dense),
        "post_feedforward_layernorm_1.weight": (r.hidden,),
        "pre_feedforward_layernorm_2.weight": (r.hidden,),
        "post_feedforward_layernorm_2.weight": (r.hidden,),
        "post_feedforward_layernorm.weight": (r.hidden,),
        "router.proj.weight": (r.experts, r.hidden),
        "router.scale": (r.hidden,),
        "router.per_expert_scale": (r.experts,),
        "experts.gate_up_proj": (r.experts, 2 * r.expert, r.hidden),
        "experts.down_proj": (r.experts, r.hidden, r.expert),
        "layer_scalar": (1,),
    }
    if not r.full(layer):  # full attention takes its keys for values
        block["self_attn.v_proj.weight"] = (kv_heads * head, r.hidden)
    return block


def tensors(recipe: Recipe) -> dict[str, Array]:
    """Random values for all tensors: such as BF16, F16 and F32 all hold exactly."""
    random = np.random.default_rng(recipe.seed)
    arrays = {}
    for name, shape in shapes(recipe).items():
        raw = 0.05 * random.standard_normal(shape, np.float32) + float("norm" in name)
        bits = raw.view(np.uint32) + np.uint32(1 << 15) & np.uint32(0xFFFF0000)
        rounded = bits.view(np.float32)
        arrays[name] = np.where(np.abs(rounded) < 2**-14, 0, rounded)  # F16's smallest normal
    return arrays


def encoded(array: Array, dtype: str) -> bytes:
    """An array as a checkpoint holds it."""
    if dtype == "BF16":
        return (array.view(np.uint32) >> 16).astype("<u2").tobytes()
    return array.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def header(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> dict[str, Any]:
    """A safetensors header for tensors of one type that lie one after the other."""
    return placed({name: (dtype, shape) for name, shape in shapes.items()})


def placed(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> dict[str, Any]:
    """The same for tensors that have a type each."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        span = [offset, offset + prod(shape) * _BYTES.get(dtype, 1)]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": span}
        offset = span[1]
    return entries


def write_safetensors(path: Path, entries: Mapping[str, Any], data: bytes) -> int:
    """Write a header and the data; return how long the header makes the file."""
    raw = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return 8 + len(raw) + max(e["data_offsets"][1] for e in entries.values() if "shape" in e)


def read_safetensors(path: Path) -> tuple[dict[str, Any], bytes]:
    """A file's header and data, for tests that damage one of them."""
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def edit(path: Path, change: Callable[..., object]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
