"""Tiny random checkpoints of every family, and what transformers and llama.cpp make of them.

`fixtures/families/NAME` is a recording, made by `bench/families/record.py`: config.json and
generation_config.json as published checkpoints have them; tensors.json, the kind of tokenizer and
for every tensor its type, shape and the range of its values; expected.npz, what transformers
computes; converted.json, what llama.cpp's own converter makes. The values are not stored: they are
drawn from bits of PCG64, whose stream numpy guarantees, so every machine builds the same files.
"""

import json
import re
import shutil
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemcut.score import log_softmax
from tests import checkpoints

FIXTURES = Path(__file__).parent / "fixtures"
FAMILIES = FIXTURES / "families"
TOKENIZERS = FIXTURES / "tokenizers"


def recorded() -> list[str]:
    """The names of all recordings."""
    return sorted(path.parent.name for path in FAMILIES.glob("*/tensors.json"))


def build(folder: Path, name: str, redrawn: str | None = None) -> Path:
    """Write a recording's checkpoint into a new folder.

    Args:
        redrawn: a regular expression; tensors whose whole names match get other values.
    """
    folder.mkdir(parents=True)
    recording = FAMILIES / name
    entries = json.loads((recording / "tensors.json").read_text(encoding="utf-8"))
    donor = TOKENIZERS / entries["tokenizer"]
    for path in [*donor.iterdir(), *recording.glob("*config.json")]:
        shutil.copyfile(path, folder / path.name)
    tensors = entries["tensors"]
    changed = re.compile(redrawn or "$^")
    seeds = {key: f"another {key}" if changed.fullmatch(key) else key for key in tensors}
    data = b"".join(_encoded(seeds[key], *entry) for key, entry in tensors.items())
    header = checkpoints.placed({key: (entry[0], entry[1]) for key, entry in tensors.items()})
    checkpoints.write_safetensors(folder / "model.safetensors", header, data)
    return folder


def expected(name: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """A window of token ids [n] and the log-probabilities [n, V] transformers gives after each."""
    stored = np.load(FAMILIES / name / "expected.npz")
    codes = stored["low"][0] + stored["step"][0] * stored["codes"][0]
    return stored["windows"][0], log_softmax(codes)


def converted(name: str) -> dict[str, dict[str, list[Any]]]:
    """Digests (as bench/converter.py's) of llama.cpp's conversions to `f32` and `bf16`."""
    digests: dict[str, dict[str, list[Any]]]
    digests = json.loads((FAMILIES / name / "converted.json").read_text(encoding="utf-8"))
    return digests


def _encoded(seed: str, dtype: str, shape: list[int], low: float, high: float) -> bytes:
    """Values that are uniform in [low, high), as a checkpoint holds them."""
    bits = np.random.PCG64(int.from_bytes(sha256(seed.encode()).digest()[:8]))
    unit = (bits.random_raw(prod(shape)) >> np.uint64(40)) * 2.0**-24
    values = low + (high - low) * unit
    if dtype == "U8":
        return values.astype(np.uint8).tobytes()
    exact = values.astype(np.float32)
    if dtype == "BF16":
        raw = exact.view(np.uint32)
        exact = (raw + 0x7FFF + (raw >> 16 & 1) & 0xFFFF0000).view(np.float32)
    return checkpoints.encoded(exact, dtype)
