"""llama.cpp's older importance matrices, `imatrix.dat`.

Little-endian: a count of entries; each one is a name (length first), the number of chunks behind
it, and as many means times that number as follow its own count. Behind them, if anything: the
number of chunks, and the name of the text. Where a matrix ends is not said, nor how often an
expert was reached: one that was not has ones (`tools/imatrix/imatrix.cpp`).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemcut import ggml
from gemcut.artefact import read_bytes
from gemcut.errors import GGUFError

CHUNK_SIZE = 512  # tokens; the files do not say, and it is the tool's default
_MAX_SIZE = 1 << 32  # bytes; a model of 256 experts in 61 layers takes half of it
_MAX_NAME = 256  # bytes; ggml's names have at most 63


@dataclass(frozen=True)
class Legacy:
    """A file's entries: means times chunks float32 [matrices * columns], and the chunks."""

    entries: Mapping[str, tuple[ggml.Floats, int]]
    datasets: tuple[str, ...]
    chunk_count: int


def read(path: Path) -> Legacy:
    """Read an `imatrix.dat`.

    Raises:
        GGUFError: another kind of file, or cut short.
    """
    try:
        data = read_bytes(path, _MAX_SIZE)
    except OSError as error:
        raise GGUFError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > _MAX_SIZE:
        raise GGUFError(f"{path}: not an importance matrix: longer than {_MAX_SIZE} bytes")
    return parse(data, str(path))


def parse(data: bytes, where: str) -> Legacy:
    """Read the bytes of an `imatrix.dat`; `where` names it in errors. Raises GGUFError."""
    cursor = _Cursor(data, where)
    count = cursor.number("entries", 12)
    entries: dict[str, tuple[ggml.Floats, int]] = {}
    for _ in range(count):
        name = cursor.text("the length of a name")
        calls = cursor.number("chunks", 0)
        sums = cursor.floats(cursor.number("values", 4))
        if not name or name in entries or not sums.size or not calls:
            raise cursor.refused(f"entry {name!r:.80} is empty or there twice")
        entries[name] = sums, calls
    if cursor.at_end:
        return Legacy(entries, (), max((calls for _, calls in entries.values()), default=0))
    chunks = cursor.number("chunks", 0)
    datasets = () if cursor.at_end else (cursor.text("the length of a name", 1 << 16),)
    return Legacy(entries, tuple(filter(None, datasets)), chunks)


class _Cursor:
    """A position in the file; what is announced is held against the bytes that are left."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where, self._at = data, where, 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._data)

    def refused(self, why: str) -> GGUFError:
        return GGUFError(
            f"{self._where}: not an importance matrix, or damaged: {why} (byte {self._at} of "
            f"{len(self._data)}); wanted llama.cpp's imatrix as GGUF or .dat"
        )

    def number(self, what: str, least: int) -> int:
        """A count of things that take at least so many bytes each."""
        value: int = struct.unpack("<i", self._take(4))[0]
        if value < 0 or value * least > len(self._data) - self._at:
            raise self.refused(f"{what}: {value}")
        return value

    def text(self, what: str, most: int = _MAX_NAME) -> str:
        length = self.number(what, 1)
        if length > most:
            raise self.refused(f"{what}: {length}")
        return self._take(length).decode("utf-8", "replace")

    def floats(self, count: int) -> ggml.Floats:
        return np.frombuffer(self._take(4 * count), "<f4").astype(np.float32)

    def _take(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) < size:
            raise self.refused("it ends within an entry")
        self._at += size
        return piece
