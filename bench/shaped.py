"""Files in the shapes of real models, full of random weights, to measure how fast they run.

    PYTHONPATH=. python bench/shaped.py [--models 26B-A4B] [--type Q4_0 | --size 14G]

A model's speed depends on its shapes and types and not on what it has learned, except that its
routers choose experts at random. Of each type and row length a few megabytes of random weights are
quantized, and are written again and again until every tensor is full: they lie in the file, and in
memory, at full length. What is made stays in build/bench.
"""

import argparse
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np
from common import CHECKPOINT, FOLDER
from memory import checkpoint

from gemcut import api, ggml
from gemcut.gguf_file import TensorInfo, Value
from gemcut.gguf_writer import GGUFWriter
from gemcut.quantize import choose
from gemcut.quantize.writer import metadata
from gemcut.sizes import format_size, parse_size
from tests import checkpoints

TILE = 4 << 20  # weights that are quantized of each type and row length
Shape = tuple[dict[str, Value], list[TensorInfo]]

# Of the real model, where the checkpoints of the tests have less.
REAL = {"expert_used_count": 8, "attention.sliding_window": 1024, "context_length": 262144}

# A sparse model of today in the shapes of Qwen3-MoE: a smaller one than was published, so that it
# takes 3.1 GB in Q4_K. Its vocabulary is the demo's, with unused tokens.
QWEN = {
    "block_count": 20,
    "context_length": 32768,
    "embedding_length": 2048,
    "feed_forward_length": 6144,
    "attention.head_count": 32,
    "attention.head_count_kv": 4,
    "attention.key_length": 128,
    "attention.value_length": 128,
    "expert_count": 48,
    "expert_used_count": 8,
    "expert_feed_forward_length": 768,
}
VOCABULARY = 151936
# A small model of today's large vocabularies: of the width of Gemma 3 270M, with experts.
NARROW = QWEN | {
    "block_count": 12,
    "embedding_length": 640,
    "attention.head_count": 8,
    "attention.head_count_kv": 2,
    "attention.key_length": 128,
    "attention.value_length": 128,
    "expert_count": 16,
    "expert_used_count": 4,
    "expert_feed_forward_length": 512,
}
NARROW_VOCABULARY = 262144
SHORT = 2  # blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--type", help="a type or stock mixture; default: of 26B-A4B, by --size")
    parser.add_argument("--size", type=parse_size, default=14 * 10**9, help="of the 26B-A4B file")
    arguments = parser.parse_args()
    for name in arguments.models:
        begun, path = perf_counter(), FOLDER / f"shaped-{name}.gguf"
        fill(path, *MODELS[name](arguments.type, arguments.size))
        seconds = perf_counter() - begun
        print(f"{path}: {format_size(path.stat().st_size)} in {seconds:.0f} s")


def gemma(kind: str | None, size: int) -> Shape:
    """Gemma 4 26B-A4B in one type or stock mixture, or as gemcut plans it for a size."""
    model = api.open_source(checkpoint("26B-A4B"))
    target = api.Target(kind, fallback=True) if kind else api.Target(size=size)
    plan = api.make_plan(model, target)
    values = metadata(model, plan)
    for key, number in REAL.items():
        values[f"{model.architecture}.{key}"] = Value("u32", number)
    return values, choose.infos(model, plan)


def short(kind: str | None, size: int) -> Shape:
    """The first blocks of Gemma 4 26B-A4B in one type: its width and vocabulary, little else."""
    values, infos = gemma(kind or "q8_0", size)
    name = values["general.architecture"].data
    for key, value in values.items():
        if key.startswith(f"{name}.") and isinstance(value.data, list):
            values[key] = Value(value.kind, value.data[:SHORT])
    values[f"{name}.block_count"] = Value("u32", SHORT)
    kept = ("token_embd", "output", *(f"blk.{block}." for block in range(SHORT)))
    return values, [info for info in infos if info.name.startswith(kept)]


def narrow(kind: str | None, size: int) -> Shape:
    """A small model with a vocabulary of 262,144 tokens, in one type."""
    return qwen(kind, size, NARROW, NARROW_VOCABULARY)


def qwen(
    kind: str | None,
    size: int,
    numbers: Mapping[str, int] = QWEN,
    vocabulary: int = VOCABULARY,
) -> Shape:
    """Blocks of Qwen3-MoE in one type, router and norms in F32."""
    tokenizer = api.open_source(CHECKPOINT).metadata
    values = {"general.architecture": Value("str", "qwen3moe")}
    values |= {f"qwen3moe.{key}": Value("u32", number) for key, number in numbers.items()}
    values["qwen3moe.attention.layer_norm_rms_epsilon"] = Value("f32", 1e-6)
    values["qwen3moe.rope.freq_base"] = Value("f32", 1e6)
    values |= {key: value for key, value in tokenizer.items() if key.startswith("tokenizer.")}
    for key, filler in (("tokens", None), ("scores", 0.0), ("token_type", 5)):
        name = f"tokenizer.ggml.{key}"
        if name in values:
            values[name] = _padded(values[name], filler, vocabulary)
    base, plain = ggml.type_named(kind or "q4_k"), ggml.type_named("f32")
    return values, [
        TensorInfo(name, shape, plain if len(shape) == 1 or "gate_inp" in name else base, 0)
        for name, shape in _qwen_shapes(numbers, vocabulary)
    ]


def _qwen_shapes(
    numbers: Mapping[str, int], vocabulary: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads = numbers["embedding_length"], numbers["attention.head_count"]
    head, experts = numbers["attention.key_length"], numbers["expert_count"]
    kv, wide = numbers["attention.head_count_kv"] * head, numbers["expert_feed_forward_length"]
    block = {
        "attn_norm": (hidden,),
        "attn_q": (heads * head, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_q_norm": (head,),
        "attn_k_norm": (head,),
        "attn_output": (hidden, heads * head),
        "ffn_norm": (hidden,),
        "ffn_gate_inp": (experts, hidden),
        "ffn_gate_exps": (experts, wide, hidden),
        "ffn_up_exps": (experts, wide, hidden),
        "ffn_down_exps": (experts, hidden, wide),
    }
    yield "token_embd.weight", (vocabulary, hidden)
    yield "output_norm.weight", (hidden,)
    yield "output.weight", (vocabulary, hidden)
    for layer in range(numbers["block_count"]):
        for name, shape in block.items():
            yield f"blk.{layer}.{name}.weight", shape


def _padded(value: Value, filler: float | None, vocabulary: int) -> Value:
    """A list of the vocabulary at its full length."""
    data = list(value.data)
    more = range(len(data), vocabulary)
    return Value(value.kind, data + [f"<unused{i}>" if filler is None else filler for i in more])


MODELS: dict[str, Callable[[str | None, int], Shape]] = {
    "26B-A4B": gemma,
    "26B-A4B-short": short,
    "narrow": narrow,
    "qwen3moe": qwen,
}


def fill(
    path: Path, values: dict[str, Value], infos: list[TensorInfo], spread: float = 1.0
) -> None:
    """Write a file of this metadata and these tensors, full of random weights.

    spread: about the standard deviation of a token's logits.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with GGUFWriter(path, values, infos) as writer:
        for info in infos:
            scale = spread if info.name == "output_norm.weight" else 1.0
            one = len(info.shape) == 1
            rows = norms(info, scale) if one else tile(info.type.name, info.shape[-1])
            for start in range(0, info.rows, len(rows)):
                writer.write(info.name, start, rows[: info.rows - start])


def norms(info: TensorInfo, scale: float) -> ggml.Bytes:
    """Norms and scales that are all alike."""
    return np.full((1, info.shape[0]), scale, np.float32).view(np.uint8)


@cache
def tile(kind: str, columns: int) -> ggml.Bytes:
    """Encoded rows [n, row_bytes] of random weights that keep the length of a vector."""
    rows = max(1, TILE // columns)
    weights = np.random.default_rng(columns).standard_normal((rows, columns), np.float32)
    return ggml.quantize(ggml.type_named(kind), weights / np.float32(columns**0.5))


def random_checkpoint(name: str, recipe: checkpoints.Recipe) -> Path:
    """A checkpoint of normally distributed BF16 weights in build/bench, made once."""
    folder = FOLDER / name
    if not folder.exists():
        unfinished = folder.with_name("unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        checkpoints.build(unfinished, CHECKPOINT, recipe, hollow=True)
        for path in unfinished.glob("*.safetensors"):
            _fill_holes(path)
        unfinished.rename(folder)
    return folder


def _fill_holes(path: Path) -> None:
    random = np.random.default_rng(0)
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(8 + struct.unpack("<Q", file.read(8))[0])
        while (left := size - file.tell()) > 0:
            values = 0.02 * random.standard_normal(min(left // 2, 1 << 24), np.float32)
            file.write((values.view(np.uint32) >> 16).astype("<u2").data)


if __name__ == "__main__":
    main()
