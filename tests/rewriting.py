"""Checkpoints in another layout: a recording's tensors and config, changed and written again."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemcut import api
from tests import checkpoints, families
from tests.family_checks import BENCH

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
    entries = checkpoints.placed({k: (dtype, a.shape) for k, (dtype, a) in tensors.items()})
    data = b"".join(np.ascontiguousarray(array).tobytes() for _, array in tensors.values())
    checkpoints.write_safetensors(folder / "model.safetensors", entries, data)


def configure(path: Path, fields: Mapping[str, Any]) -> None:
    """Change fields of a JSON file, of a config.json in the text model's part; None removes one."""

    def change(config: dict[str, Any]) -> None:
        text = config.get("text_config", config)
        text |= fields
        for field in [field for field, value in fields.items() if value is None]:
            del text[field]

    checkpoints.edit(path, change)


def reconfigure(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let a function change config.json."""
    checkpoints.edit(folder / "config.json", change)


def variant(
    folder: Path,
    name: str,
    change: Callable[[Tensors], Tensors] = dict,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a recording's checkpoint in another form.

    Args:
        change: makes the tensors to write.
        config: fields to `configure`.
    """
    families.build(folder, name)
    write(folder, change(read(folder)))
    configure(folder / "config.json", config or {})
    return folder


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


def converted(checkpoint: Path, kind: str = "bf16") -> tuple[Path, dict[str, list[Any]]]:
    """Convert a checkpoint; the file, and its digest without the name."""
    output = checkpoint.with_suffix(f".{kind}.gguf")
    api.convert_checkpoint(api.open_source(checkpoint), output, kind, threads=1)
    digest = BENCH["digest"](output)
    digest.pop(BENCH["NAMED_AFTER_FOLDER"])
    return output, digest


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
