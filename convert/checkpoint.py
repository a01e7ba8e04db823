"""A checkpoint directory: its JSON files and its tensors, wherever the shards are.

Nothing here knows what a tensor is for; the families do.
"""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from gemcut.convert.safetensors_file import SourceTensor, read_header
from gemcut.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Checkpoint:
    """An opened checkpoint directory in Hugging Face's form; tensors are mapped, not loaded."""

    def __init__(self, folder: Path) -> None:
        """Read config.json and every shard's header.

        Raises:
            CheckpointError: no folder, no config, a missing, truncated or damaged shard.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            what = "is a file" if self.folder.exists() else "does not exist"
            raise CheckpointError(f"{folder}: {what}; wanted a checkpoint's folder")
        self.config = self.json("config.json")
        self.tensors: Mapping[str, SourceTensor] = self._read_headers()
        self._maps: dict[Path, mmap.mmap] = {}

    def json(self, name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
        """One of the folder's JSON objects, or the default if the file is missing.

        Raises:
            CheckpointError: missing without a default, or not a JSON object.
        """
        path = self.folder / name
        if default is not None and not path.exists():
            return default
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise CheckpointError(f"{path}: a JSON {type(value).__name__}, wanted an object")
        return value

    def view(self, name: str) -> npt.NDArray[Any]:
        """A tensor's data, mapped; BF16 as uint16 bits."""
        tensor = self.tensors[name]
        if tensor.path not in self._maps:
            self._maps[tensor.path] = _map(tensor.path)
        return tensor.view(self._maps[tensor.path])

    def release(self) -> None:
        """Give back the memory of what was read; reading it again is still right, only slower.

        Mapped pages count as this process's memory for as long as nobody else wants it, and a
        whole checkpoint would add up to its size.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)

    def _read_headers(self) -> dict[str, SourceTensor]:
        if not (self.folder / INDEX).exists():
            if not (self.folder / SINGLE).exists():
                raise CheckpointError(f"{self.folder}: has neither {INDEX} nor {SINGLE}")
            return read_header(self.folder / SINGLE)
        placed = self.json(INDEX).get("weight_map")
        if not isinstance(placed, dict) or not all(isinstance(s, str) for s in placed.values()):
            raise CheckpointError(f"{self.folder / INDEX}: no weight_map of names to files")
        found: dict[str, SourceTensor] = {}
        for shard in sorted(set(placed.values())):
            if Path(shard).name != shard:  # a name off disk must not lead out of the folder
                raise CheckpointError(f"{self.folder / INDEX}: {shard!r} is not a file name")
            if not (self.folder / shard).exists():
                raise CheckpointError(f"{self.folder / shard}: missing; {INDEX} names it")
            held = read_header(self.folder / shard)
            found |= {name: held[name] for name in held if placed.get(name) == shard}
        if lost := sorted(set(placed) - set(found)):
            raise CheckpointError(
                f"{self.folder / placed[lost[0]]}: {lost[0]} is not in it, though {INDEX} says so"
                + (f" ({len(lost)} such tensors)" if len(lost) > 1 else "")
            )
        return found


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
