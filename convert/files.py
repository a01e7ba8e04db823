"""The files of a checkpoint, in a folder or on the Hub, where they are fetched when asked for.

Only names at the top level count, and only what a conversion needs: the same weights in another
format, in another framework's, or in a folder below are left where they are.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from gemcut.errors import CheckpointError

SMALL = (
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model*",
    "tekken.json",
    "*.tiktoken",
    "tiktoken.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.jinja",
    "chat_template.json",
    "README.md",
)
# Best first: the index of shards, the single file, shards without an index.
WEIGHTS = (
    ("model.safetensors.index.json", "model.safetensors", "model-*-of-*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model-*-of-*.bin"),
    ("", "", "*.pth"),
)
CHANGED = "was changed while it was read, so nothing of it is kept; run again when it is at rest"
_INDEXES = tuple(index for index, _, _ in WEIGHTS if index)
_MAX_INDEX = 100_000_000  # bytes; a trillion weights in 100,000 tensors need a tenth of it


class Files(Protocol):
    """A checkpoint's files. What is asked for is fetched if it is not at hand."""

    @property
    def where(self) -> str:
        """The folder or the repository, for messages."""

    @property
    def identity(self) -> str:
        """A digest that changes when the contents do, and not when a shard comes or goes."""

    def names(self) -> frozenset[str]:
        """The files at the top level; none of these names leads out of it."""

    def size(self, name: str) -> int:
        """Bytes of a file. Raises CheckpointError if there is none."""

    def path(self, name: str) -> Path:
        """A file on this machine, whole. Raises CheckpointError: there is none, or no way to it."""

    def head(self, name: str, count: int, offset: int = 0) -> bytes:
        """Bytes of a file, fewer where it ends, without fetching the rest of it.

        Raises:
            CheckpointError: see `path`.
        """

    def drop(self, name: str) -> None:
        """Give back the room of a fetched shard, to be fetched again if it is asked for again."""

    def fetch(self) -> None:
        """Fetch what a conversion needs now, rather than shard by shard. Raises CheckpointError."""

    def check(self) -> None:
        """Raise CheckpointError if the contents are no longer those of `identity`."""


class LocalFiles:
    """A checkpoint's folder. Of a cached snapshot of the Hub, the identity is known already."""

    def __init__(self, folder: Path, where: str | None = None, identity: str | None = None) -> None:
        """List the folder.

        Raises:
            CheckpointError: there is no such folder, or it cannot be read.
        """
        self.folder, self.where, self._identity = Path(folder), where or str(folder), identity
        if not self.folder.is_dir():
            what = "is a file" if self.folder.exists() else "does not exist"
            raise CheckpointError(f"{folder}: {what}; wanted a checkpoint's folder")
        try:
            self._names = frozenset(entry.name for entry in os.scandir(folder) if entry.is_file())
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from error

    @cached_property
    def identity(self) -> str:
        """Of names, sizes and times of change: reading a whole checkpoint would take minutes."""
        return self._identity or self._digest()

    def _digest(self) -> str:
        names = sorted({*small_files(self._names), *weight_files(self)})
        return state_digest(map(self.path, names))

    def names(self) -> frozenset[str]:
        """The files at the top level."""
        return self._names

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self.path(name).stat().st_size

    def path(self, name: str) -> Path:
        """A file of the folder."""
        if name not in self._names:
            raise CheckpointError(f"{self.folder / name}: missing")
        return self.folder / name

    def head(self, name: str, count: int, offset: int = 0) -> bytes:
        """Bytes of a file."""
        return read_at(self.path(name), count, offset)

    def drop(self, name: str) -> None:
        """Nothing: the file is not ours."""

    def fetch(self) -> None:
        """Nothing: everything is at hand."""

    def check(self) -> None:
        """Raise CheckpointError if a file was changed since `identity` was asked for."""
        try:
            same = bool(self._identity) or self._digest() == self.identity
        except OSError as error:
            raise CheckpointError(f"{self.where}: has become unreadable: {error}") from error
        if not same:
            raise CheckpointError(f"{self.where}: {CHANGED}")


def state_digest(paths: Iterable[Path]) -> str:
    """A digest of files' names, sizes and times of change. Raises OSError."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def read_at(path: Path, count: int, offset: int = 0) -> bytes:
    """Bytes of a file, fewer where it ends. Raises CheckpointError."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(count)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def small_files(names: Iterable[str]) -> frozenset[str]:
    """Of these names, the ones beside the weights that a conversion reads."""
    return frozenset(
        name
        for name in names
        if name in _INDEXES or any(fnmatchcase(name, pattern) for pattern in SMALL)
    )


def weight_files(files: Files) -> tuple[str, ...]:
    """The files that hold the weights, in order; safetensors if there are any; () if none.

    Raises:
        CheckpointError: an index is damaged or names a file that is not there.
    """
    found = weights_among(files.names())
    return _indexed(files, found[0]) if found and found[0] in _INDEXES else found


def weights_among(names: Collection[str]) -> tuple[str, ...]:
    """Of these names, the index of the weights, or else the weights themselves; () if none."""
    for index, single, pattern in WEIGHTS:
        for name in (index, single):
            if name in names:
                return (name,)
        if shards := sorted(name for name in names if fnmatchcase(name, pattern)):
            return tuple(shards)
    return ()


def _indexed(files: Files, index: str) -> tuple[str, ...]:
    """The shards that an index names."""
    where = f"{files.where}: {index}"
    if files.size(index) > _MAX_INDEX:
        raise CheckpointError(f"{where}: {files.size(index)} bytes, too large for an index")
    placed = _weight_map(read_at(files.path(index), _MAX_INDEX))
    if not isinstance(placed, dict) or not all(isinstance(s, str) for s in placed.values()):
        raise CheckpointError(f"{where}: no weight_map of names to files")
    shards = sorted(set(placed.values()))
    for shard in shards:
        if Path(shard).name != shard:  # a name off disk must not lead out of the folder
            raise CheckpointError(f"{where}: {shard!r} is not a file name")
        if shard not in files.names():
            raise CheckpointError(f"{where}: names {shard}, which is missing; download it again")
    return tuple(shards)


def _weight_map(data: bytes) -> Any:
    try:
        index = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return index.get("weight_map") if isinstance(index, dict) else None
