"""Checkpoints in another layout: a recording's tensors and config, changed and written again."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemcut import api
from tests import checkpoints

Raw = npt.NDArray[Any]  # BF16 as uint16 bits, 8-bit floats as uint8
Tensors = dict[str, tuple[str, Raw]]  # name -> type and data

_NUMPY = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}


def read(folder: Path) -> Tensors:
    """A checkpoint's tensors."""
    entries, data = checkpoints.read_safetensors(folder / "model.safetensors")
    entries.pop("__metadata__", None)
    return {
        name: (
            entry["dtype"],
            np.frombuffer(
                data[slice(*entry["data_offsets"])], _NUMPY.get(entry["dtype"], "u1")
            ).reshape(entry["shape"]),
        )
        for name, entry in entries.items()
    }


def write(folder: Path, tensors: Tensors) -> None:
    """Write a checkpoint's tensors over the ones that it had."""
    entries, offset = {}, 0
    for name, (dtype, array) in tensors.items():
        span = [offset, offset + array.nbytes]
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        offset = span[1]
    data = b"".join(np.ascontiguousarray(array).tobytes() for _, array in tensors.values())
    checkpoints.write_safetensors(folder / "model.safetensors", entries, data)


def reconfigure(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Let a function change config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def contents(folder: Path) -> tuple[Mapping[str, Any], dict[str, Raw]]:
    """What a checkpoint becomes: the architecture's metadata, and every tensor's values."""
    model = api.open_source(folder, requantize=True)
    settings = {k: v for k, v in model.metadata.items() if k.startswith(f"{model.architecture}.")}
    tensors = {t.name: t.read(0, t.rows).reshape(t.shape).copy() for t in model.tensors}
    return settings, tensors


def assert_same(ours: Path, theirs: Path) -> None:
    """Two checkpoints become the same."""
    (settings, tensors), (other_settings, other_tensors) = contents(ours), contents(theirs)
    assert settings == other_settings
    assert tensors.keys() == other_tensors.keys()
    for name, values in tensors.items():
        np.testing.assert_array_equal(values, other_tensors[name], name)
