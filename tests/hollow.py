"""Files with the headers of large models and nothing in them, and machines to place them on."""

import json
import os
from dataclasses import replace
from pathlib import Path

from gemcut import ggml
from gemcut.gguf_experts import expert_name, marked
from gemcut.gguf_file import TensorInfo
from gemcut.gguf_layout import Layout
from gemcut.profile import Processor, Profile
from tests.weightless import metadata_of

MIB, GIB = 1 << 20, 1 << 30
HOST = Processor("cpu", "host", 32 * GIB, GIB, 40e9, {}, 5e11)
CARD = Processor("gpu0", "card", 12 * GIB, GIB, 400e9, {}, 3e13, 12e9)


def hollow(
    path: Path,
    blocks: int = 4,
    experts: int = 8,
    hidden: int = 2048,
    wide: int = 1024,
    kind: str = "q4_k",
    architecture: str = "qwen3moe",
    tied: bool = False,
    singles: tuple[str, ...] = (),
    **metadata,
) -> Path:
    """A mixture of experts of this shape, with a vocabulary of 65536 tokens.

    With `singles` every expert is a tensor of its own, in one of these types after the other.
    """
    shapes = {"token_embd.weight": (65536, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (65536, hidden)
    for block in range(blocks):
        shapes |= {
            f"blk.{block}.attn_norm.weight": (hidden,),
            f"blk.{block}.attn_q.weight": (2 * hidden, hidden),
            f"blk.{block}.attn_output.weight": (hidden, 2 * hidden),
            f"blk.{block}.ffn_gate_inp.weight": (experts, hidden),
            f"blk.{block}.ffn_gate_exps.weight": (experts, wide, hidden),
            f"blk.{block}.ffn_up_exps.weight": (experts, wide, hidden),
            f"blk.{block}.ffn_down_exps.weight": (experts, hidden, wide),
        }
    infos = [
        TensorInfo(name, shape, ggml.type_named(kind if len(shape) > 1 else "f32"))
        for name, shape in shapes.items()
    ]
    if singles:
        infos = [new for info in infos for new in _apart(info, singles)]
    numbers = {
        "block_count": blocks,
        "embedding_length": hidden,
        "vocab_size": 65536,
        "context_length": 65536,
        "attention.head_count": 16,
        "attention.head_count_kv": 4,
        "attention.key_length": 256,
        "attention.value_length": 256,
        "expert_count": experts,
        "expert_used_count": 2,
        "expert_feed_forward_length": wide,
    }
    values = metadata_of(architecture, numbers | metadata)
    found = Layout(marked(values) if singles else values, tuple(infos))
    path.write_bytes(found.header)
    os.truncate(path, found.size)
    return path


def _apart(info, kinds):
    """A tensor, or of a stack its experts."""
    if len(info.shape) < 3:
        return [info]
    return [
        TensorInfo(
            expert_name(info.name, n), info.shape[1:], ggml.type_named(kinds[n % len(kinds)])
        )
        for n in range(info.shape[0])
    ]


def machine(*vram, ram=32 * GIB, **changes):
    """A host beside cards of so many bytes."""
    cards = tuple(replace(CARD, memory=size, **changes) for size in vram)
    host = replace(HOST, memory=ram)
    return Profile("test", host, (), sync=1e-4, doubt=0.2).with_cards(cards)


def experts_on_host(placement):
    return sorted(n for n, place in placement.places.items() if "exps" in n and place == "cpu")


def check(placement):
    """Nothing holds more than it can, and nothing is lost."""
    for place in placement.profile.places:
        page = placement.ledger[place.name]
        assert page["free"] >= 0
        assert sum(page.values()) == place.memory
    json.dumps(placement.to_dict())
