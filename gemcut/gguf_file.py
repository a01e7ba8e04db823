"""Reading GGUF files: metadata with its exact kinds, the tensor table, rows of bytes.

The format is described in ggml's `docs/gguf.md` (version 3; 2 differs in nothing that is read
here). Every count and length comes off the disk and is checked against the bytes that are left
before anything is allocated. Nothing here writes (`gguf_writer`) or knows what a tensor means.
"""

import errno
import mmap
import os
import stat
import struct
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from gemcut import ggml
from gemcut.closing import Closing
from gemcut.errors import GGUFError
from gemcut.gguf_experts import Stack, expert_count, is_marked, restored, stacks
from gemcut.gguf_header import Deferred, TensorInfo, Value

__all__ = ["GGUFFile", "Deferred", "TensorInfo", "Value"]  # the last three are of gguf_header

MAGIC = b"GGUF"
ALIGNMENT_KEY, ALIGNMENT = "general.alignment", 32  # and what it is unless it is said
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS

# The scalar kinds with their numbers in the file and their layout.
SCALARS: dict[str, tuple[int, str]] = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
STRING, ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_SCALAR_BY_NUMBER = {number: (kind, code) for kind, (number, code) in SCALARS.items()}


class GGUFFile(Closing):
    """An opened GGUF file, mapped into memory; nothing of the tensors is read until asked for.

    One with types per expert shows the stock architecture's metadata, and its single experts as
    `tensors`; `stacks` has them together, and is empty in any other file.
    """

    per_expert: bool
    state: tuple[int, ...]  # of the file when its header was read, see `state_of`
    stacks: Mapping[str, Stack] = MappingProxyType({})

    def __init__(self, path: Path) -> None:
        """Map the file and read its header.

        Raises:
            GGUFError: not a GGUF, another version, truncated, or inconsistent.
        """
        self.path = Path(path)
        try:
            with open(self.path, "rb", opener=_without_waiting) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError(errno.EINVAL, "a pipe or device, wanted a file")
                self.state = state_of(file.fileno())
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            reason = error.strerror if isinstance(error, OSError) else "the file is empty"
            raise GGUFError(f"{self.path}: cannot be read as a GGUF: {reason}") from error
        try:
            self._parse(_Cursor(self._map, self.path))
        except BaseException:
            self.close()
            raise

    def _parse(self, cursor: "_Cursor") -> None:
        if (magic := self._map[:4]) != MAGIC:
            raise GGUFError(f"{self.path}: not a GGUF: begins with {magic!r}, wanted {MAGIC!r}")
        cursor.take(len(MAGIC))
        self.version = cursor.scalar("I")
        if self.version not in (2, 3):
            raise GGUFError(f"{self.path}: GGUF version {self.version}, wanted 2 or 3")
        n_tensors, n_values = cursor.count(24), cursor.count(13)
        values = dict(cursor.pair() for _ in range(n_values))
        if len(values) != n_values:
            raise GGUFError(f"{self.path}: two metadata values of one key")
        self.per_expert = is_marked(values)
        self.metadata: Mapping[str, Value] = restored(values, str(self.path))
        alignment = self.get(ALIGNMENT_KEY, ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise GGUFError(f"{self.path}: alignment {alignment!r} is not a power of two")
        self.alignment = alignment  # of tensors, in bytes
        infos = [cursor.tensor() for _ in range(n_tensors)]
        self.tensors: Mapping[str, TensorInfo] = {info.name: info for info in infos}
        if len(self.tensors) != len(infos):
            raise GGUFError(f"{self.path}: two tensors of one name")
        self.data_offset = -(-cursor.position // alignment) * alignment
        self._check_extent()
        # Of several files each holds some of the experts: `GGUFParts` sees them all.
        if self.per_expert and self.get("split.count", 0) in (0, 1):
            self.stacks = stacks(infos, str(self.path), expert_count(self.metadata))

    def _check_extent(self) -> None:
        for info in self.tensors.values():
            end = self.data_offset + info.offset + info.nbytes
            if end > len(self._map):
                raise GGUFError(
                    f"{self.path}: truncated: {info.name} ends at byte {end}, "
                    f"the file at {len(self._map)}; copy or download it again"
                )
        # Loaders, which give each tensor memory of its own, would take any number of times as much.
        if self.tensor_bytes > (there := max(0, len(self._map) - self.data_offset)):
            raise GGUFError(
                f"{self.path}: damaged: tensors of {self.tensor_bytes} bytes in {there}: they "
                "overlap; copy or download it again"
            )

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> ggml.Bytes:
        """Encoded rows [n, row_bytes] of a tensor, a read-only view of the file."""
        info = self.tensors[name]
        stop = info.rows if stop is None else stop
        begin = self.data_offset + info.offset + start * info.row_bytes
        flat = np.frombuffer(self._map, np.uint8, (stop - start) * info.row_bytes, begin)
        return flat.reshape(stop - start, info.row_bytes)

    def get(self, key: str, default: Any = None) -> Any:
        """The data of a metadata value, or the default."""
        value = self.metadata.get(key)
        return default if value is None else value.data

    @cached_property
    def weights(self) -> int:
        """Number of weights of all tensors."""
        return sum(info.weights for info in self.tensors.values())

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all encoded tensors, without header and padding."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def bpw(self) -> float:
        """Bits per weight over all tensors."""
        return 8 * self.tensor_bytes / max(self.weights, 1)  # a file may hold no tensor

    def release(self) -> None:
        """Give back the memory of rows that were read; reading them again is still right."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap the file; views of it that are still alive keep it mapped until they go."""
        try:
            self._map.close()
        except BufferError:  # a view is alive
            pass


def state_of(file: int | Path) -> tuple[int, ...]:
    """What tells a file, opened or by its name, from any that takes its name, and from itself once
    changed. Raises OSError."""
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe opens, too, without somebody at its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class _Cursor:
    """A position in the header; every read is checked against the end of the file."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.position = data, path, 0

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise GGUFError(f"{self.path}: truncated: the header goes on past the end of the file")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, least: int) -> int:
        """A count of things that take at least so many bytes each."""
        number: int = self.scalar("Q")
        if number * least > len(self.data) - self.position:
            raise GGUFError(
                f"{self.path}: truncated or damaged: {number} entries announced at byte "
                f"{self.position - 8}, {len(self.data) - self.position} bytes left"
            )
        return number

    def string(self) -> str:
        # surrogateescape: a name or token that is not UTF-8 survives reading and writing
        return self.take(self.count(1)).decode("utf-8", "surrogateescape")

    def strings(self, count: int) -> list[str]:
        """Strings one after the other, in a loop of its own: a vocabulary has a million of them."""
        data, end, length, unpack = self.data, len(self.data), _LENGTH.size, _LENGTH.unpack_from
        found, position = [], self.position
        for _ in range(count):
            begin = position + length
            if begin > end:
                break
            position = begin + unpack(data, position)[0]
            if position > end:
                break
            found.append(data[begin:position].decode("utf-8", "surrogateescape"))
        if len(found) < count:
            raise GGUFError(f"{self.path}: truncated: a string goes on past the end of the file")
        self.position = position
        return found

    def pair(self) -> tuple[str, Value]:
        return self.string(), self.value(self.scalar("I"))

    def value(self, number: int) -> Value:
        if number == STRING:
            return Value("str", self.string())
        if number == ARRAY:
            return self.array()
        if number not in _SCALAR_BY_NUMBER:
            raise GGUFError(f"{self.path}: damaged: value type {number} at byte {self.position}")
        kind, code = _SCALAR_BY_NUMBER[number]
        return Value(kind, self.scalar(code))

    def array(self) -> Value:
        number = self.scalar("I")
        if number == STRING:
            return Value("[str]", self.strings(self.count(_LENGTH.size)))
        if number not in _SCALAR_BY_NUMBER:
            raise GGUFError(f"{self.path}: damaged: array of type {number}")
        kind, code = _SCALAR_BY_NUMBER[number]
        size = struct.calcsize("<" + code)
        raw = self.take(self.count(size) * size)
        return Value(f"[{kind}]", np.frombuffer(raw, np.dtype(code).newbyteorder("<")).tolist())

    def tensor(self) -> TensorInfo:
        name, n_dims = self.string(), self.scalar("I")
        if n_dims > MAX_DIMENSIONS:
            raise GGUFError(f"{self.path}: {name} has {n_dims} dimensions, wanted 4 at most")
        # A number alone, which some converters write, is to ggml what a row of one is.
        shape = tuple(self.scalar("Q") for _ in range(n_dims))[::-1] or (1,)
        number, offset = self.scalar("I"), self.scalar("Q")
        kind = ggml.type_with_id(number)
        if kind is None:
            raise GGUFError(f"{self.path}: {name} has type {number}, which this ggml cannot read")
        if 0 in shape or not kind.fits(shape[-1]):
            raise GGUFError(f"{self.path}: {name}: shape {shape} does not hold blocks of {kind}")
        return TensorInfo(name, shape, kind, offset)
