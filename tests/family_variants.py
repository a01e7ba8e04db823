"""The same tiny models (`tests.families`) in the other forms that checkpoints are published in."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemcut import api
from tests import checkpoints, families
from tests.family_checks import BENCH

# Name -> type and data, in the type that a file holds it in: BF16 as its bits.
Tensors = dict[str, tuple[str, np.ndarray[Any, Any]]]
TYPES = {"BF16": "<u2", "F32": "<f4", "F8_E4M3": "u1"}


def variant(
    folder: Path,
    name: str,
    change: Callable[[Tensors], Tensors] = dict,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a recording's checkpoint in another form.

    Args:
        change: makes the tensors to write.
        config: fields to change in config.json, in the text model's part; None removes one.
    """
    families.build(folder, name)
    path = folder / "model.safetensors"
    entries, data = checkpoints.read_safetensors(path)
    tensors = {}
    for key, entry in entries.items():
        if key != "__metadata__":
            raw = np.frombuffer(data[slice(*entry["data_offsets"])], TYPES[entry["dtype"]])
            tensors[key] = entry["dtype"], raw.reshape(entry["shape"])
    write(path, change(tensors))
    configure(folder / "config.json", config or {})
    return folder


def write(path: Path, tensors: Tensors) -> None:
    """Write tensors as safetensors."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, (dtype, array) in tensors.items():
        span = [offset, offset + array.nbytes]
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        offset = span[1]
    data = b"".join(np.ascontiguousarray(array).tobytes() for _, array in tensors.values())
    checkpoints.write_safetensors(path, entries, data)


def configure(path: Path, fields: Mapping[str, Any]) -> None:
    """Change the text model's fields of a config.json."""
    config = json.loads(path.read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    text |= fields
    for field in [field for field, value in fields.items() if value is None]:
        del text[field]
    path.write_text(json.dumps(config), encoding="utf-8")


def converted(checkpoint: Path, kind: str = "bf16") -> tuple[Path, dict[str, list[Any]]]:
    """Convert a checkpoint; the file, and its digest without the name."""
    output = checkpoint.with_suffix(f".{kind}.gguf")
    api.convert_checkpoint(api.open_source(checkpoint), output, kind, threads=1)
    digest = BENCH["digest"](output)
    digest.pop(BENCH["NAMED_AFTER_FOLDER"])
    return output, digest


def fused(tensors: Tensors) -> Tensors:
    """Routed experts as transformers holds them in memory: stacked, gate rows before up rows."""
    single = {name for name in tensors if ".mlp.experts." in name}
    found = {name: entry for name, entry in tensors.items() if name not in single}
    for folder in sorted({name.partition("experts.")[0] + "experts." for name in single}):
        count = sum(name.startswith(folder) for name in single) // 3

        def stacked(what: str, folder: str = folder, count: int = count):
            each = [tensors[f"{folder}{n}.{what}_proj.weight"][1] for n in range(count)]
            return np.stack(each)

        found[folder + "gate_up_proj"] = "BF16", np.hstack([stacked("gate"), stacked("up")])
        found[folder + "down_proj"] = "BF16", stacked("down")
    return found
