"""A checkpoint: its JSON files and its tensors, wherever its files are.

Nothing here knows what a tensor is for; the families do.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gemcut.convert import compressed, safetensors_file, torch_file
from gemcut.convert.files import Files, LocalFiles, weight_files, weights_among
from gemcut.convert.shards import Raw, Shards
from gemcut.convert.source import RawTensor, Source
from gemcut.errors import CheckpointError

_MAX_JSON = 1 << 28  # bytes of one JSON file: read, they take some twenty times as much


class Checkpoint:
    """An opened checkpoint in Hugging Face's form; tensors are mapped, not loaded."""

    def __init__(self, files: Files | Path) -> None:
        """Read config.json and the header of every file of weights.

        Raises:
            CheckpointError: no folder, no config, a missing, truncated or damaged file.
        """
        self.files: Files = LocalFiles(files) if isinstance(files, Path) else files
        self.where = self.files.where
        self.config = self.json("config.json")
        self.folder = self.files.path("config.json").parent  # of the small files
        self.shards, raw = self._open()
        self.tensors: Mapping[str, Source] = compressed.logical(raw, self.config)

    def json(self, name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
        """One of the checkpoint's JSON objects, or the default if the file is missing.

        Raises:
            CheckpointError: missing without a default, or not a JSON object.
        """
        if name not in self.files.names():
            if default is not None:
                return default
            raise CheckpointError(f"{self.where}/{name}: there is no such file")
        path = self.files.path(name)
        try:
            if path.stat().st_size > _MAX_JSON:
                raise CheckpointError(f"{path}: larger than {_MAX_JSON} bytes")
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise CheckpointError(f"{path}: a JSON {type(value).__name__}, wanted an object")
        return value

    def _open(self) -> tuple[Shards, dict[str, RawTensor]]:
        """The files of weights, and the tensors in them: with an index, those that it names."""
        names = weight_files(self.files)
        if not names:
            raise CheckpointError(
                f"{self.where}: no weights; wanted model.safetensors, pytorch_model.bin, or shards"
            )
        shards = Shards(self.files, names)
        placed = self._placed()
        found: dict[str, RawTensor] = {}
        for shard in shards.names:
            for name, raw in self._read_header(shards, shard).items():
                if placed.get(name, shard) != shard or (placed and name not in placed):
                    continue
                if name in found:
                    raise CheckpointError(
                        f"{self.where}: {name} is in {found[name].file} and in {shard}"
                    )
                found[name] = raw
        if lost := sorted(set(placed) - set(found)):
            raise CheckpointError(
                f"{self.where}/{placed[lost[0]]}: {lost[0]} is not in it, though the index says so"
                + (f" ({len(lost)} such tensors)" if len(lost) > 1 else "")
            )
        return shards, found

    def _placed(self) -> Mapping[str, str]:
        """Tensor names -> files, by the index; without one, nothing."""
        (first, *_) = weights_among(self.files.names())
        if not first.endswith(".index.json"):
            return {}
        placed: Mapping[str, str] = self.json(first)["weight_map"]
        return placed

    def _read_header(self, shards: Shards, shard: str) -> dict[str, RawTensor]:
        read = safetensors_file.read_header if shard.endswith(".safetensors") else torch_file.read
        head = partial(self.files.head, shard)
        entries = read(lambda count, offset: head(count, offset), shard, self.files.size(shard))
        return {name: Raw(entry, shards) for name, entry in entries.items()}
