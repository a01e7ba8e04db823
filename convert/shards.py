"""A checkpoint's files of weights: what lies where in them, and the mapping of the data.

A file is mapped when its first tensor is read. Until then views are hollow: they have a shape and
a type, so that a layout can be computed from headers alone, and hold zeros.
"""

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from gemcut.convert.files import Files
from gemcut.errors import CheckpointError

# As safetensors spells them. What numpy lacks (BF16, 8-bit floats) is carried as unsigned bits.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    **dict.fromkeys(["U8", "I8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"], np.dtype("u1")),
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `shape` is row-major, `offset` counts from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Raw:
    """A tensor as a file holds it, mapped when it is looked at."""

    entry: Entry
    shards: "Shards"

    @property
    def name(self) -> str:
        """Its name in the file."""
        return self.entry.name

    @property
    def dtype(self) -> str:
        """Its type, as safetensors spells it."""
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, row-major."""
        return self.entry.shape

    @property
    def file(self) -> str:
        """The name of the file that it lies in."""
        return self.entry.file

    def view(self) -> npt.NDArray[Any]:
        """The data in this shape; BF16 as uint16 bits, 8-bit floats as uint8."""
        return self.shards.view(self.entry)


class Shards:
    """Files of weights, mapped one by one as they are needed and dropped when they are done."""

    def __init__(self, files: Files, names: Iterable[str]) -> None:
        self.files = files
        self.names = sorted(names)
        self._last: Mapping[str, int] | None = None  # None while a layout is computed
        self._maps: dict[str, mmap.mmap] = {}
        self._dropped: set[str] = set()
        self._lock = Lock()

    def view(self, entry: Entry) -> npt.NDArray[Any]:
        """A tensor's data, mapped; or, while the shards are hollow, zeros of its shape."""
        dtype = DTYPES[entry.dtype]
        if self._last is None or not entry.nbytes:
            return np.broadcast_to(np.zeros((), dtype), entry.shape)
        flat = np.frombuffer(self._mapped(entry), dtype, prod(entry.shape), entry.offset)
        return flat.reshape(entry.shape)

    def lay_out(self, last: Mapping[str, int]) -> None:
        """Views hold data from now on. `last`: the highest rank of a tensor that needs a file."""
        self._last = last

    def release(self, rank: int) -> None:
        """Give back the memory of what was read; reading it again is still right, only slower.

        Mapped pages count as this process's memory for as long as nobody else wants it, and a
        whole checkpoint would add up to its size. Files that no tensor of this rank or a higher
        one needs are dropped.
        """
        last = self._last or {}
        with self._lock:
            if hasattr(mmap, "MADV_DONTNEED"):
                for mapped in self._maps.values():
                    mapped.madvise(mmap.MADV_DONTNEED)
            for name in self.names:
                if last.get(name, -1) < rank and name not in self._dropped:
                    self._maps.pop(name, None)  # unmapped when its last view goes
                    self._dropped.add(name)
                    self.files.drop(name)

    def _mapped(self, entry: Entry) -> mmap.mmap:
        with self._lock:
            if entry.file not in self._maps:
                path = self.files.path(entry.file)
                try:
                    with open(path, "rb") as file:
                        found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except (OSError, ValueError) as error:  # ValueError: the file is empty
                    reason = getattr(error, "strerror", None) or error
                    raise CheckpointError(f"{path}: cannot be read: {reason}") from error
                self._maps[entry.file] = found
                self._dropped.discard(entry.file)
            mapped = self._maps[entry.file]
        if entry.offset + entry.nbytes > mapped.size():  # of the file as it is now
            raise CheckpointError(f"{entry.file}: changed while it was converted: it is shorter")
        return mapped
