"""The journal of unfinished work: which part of it is safely on the disk.

JSON lines. The first holds a key, a digest of everything that decides the result; each further one
says how many tiles are done and what their bytes add up to. A line is only written when its bytes
are on the disk, so whatever ends the process, the journal is right; a last line may be torn.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gemcut.closing import Closing
from gemcut.errors import OutputError
from gemcut.gguf_writer import sync_folder
from gemcut.lock import Lock
from gemcut.positions import read_at, write_at

_MAX_SIZE = 1 << 24  # bytes that are read: a line for every 128 MiB of source makes far fewer


@dataclass(frozen=True)
class Record:
    """The first `tiles` tiles are done; `digest` is of those since the record before."""

    tiles: int
    digest: str


def digest(checksums: Iterable[int]) -> str:
    """One digest of many tiles' CRC-32s."""
    return hashlib.sha256(b"".join(struct.pack("<I", sum_) for sum_ in checksums)).hexdigest()


class Journal(Closing):
    """An opened journal; for as long as it is open, no other process opens it."""

    def __init__(self, path: Path, result: Path) -> None:
        """Open, lock and read; a new one is empty, and so is one that nobody can make out.

        Args:
            result: what is being written, for messages.

        Raises:
            OutputError: another process has it open, or the folder is not writable.
        """
        self.path = path
        self._lock = Lock(path, result)
        self.key = ""
        self.records: list[Record] = []
        self._ends: list[int] = []  # of the key's line, and of every record's
        try:
            self._read()
        except OSError as error:
            self.close()
            raise OutputError(f"{path}: cannot be read: {error.strerror}") from error

    def begin(self, key: str) -> None:
        """Forget everything, and write the key of the work that begins. Raises OSError."""
        self.key, self.records, self._ends = key, [], []
        os.ftruncate(self._lock.fd, 0)
        self._append({"key": key})
        sync_folder(self.path.parent)

    def append(self, record: Record) -> None:
        """Add a record; it is on the disk when this returns. Raises OSError."""
        self._append(asdict(record))
        self.records.append(record)

    def keep(self, count: int) -> None:
        """Forget all records but the first ones. Raises OSError."""
        del self.records[count:], self._ends[count + 1 :]
        os.ftruncate(self._lock.fd, self._ends[-1])

    def remove(self) -> None:
        """Delete the file, and close it. Raises OSError."""
        self._lock.remove()

    def close(self) -> None:
        """Close, which unlocks; closing again does nothing."""
        self._lock.close()

    def _append(self, line: dict[str, Any]) -> None:
        end = self._ends[-1] if self._ends else 0
        raw = json.dumps(line).encode() + b"\n"
        if write_at(self._lock.fd, raw, end) < len(raw):
            raise OSError(0, "the journal cannot be written")
        getattr(os, "fdatasync", os.fsync)(self._lock.fd)
        self._ends.append(end + len(raw))

    def _read(self) -> None:
        for end, line in _lines(read_at(self._lock.fd, _MAX_SIZE, 0)):
            done = self.records[-1].tiles if self.records else 0
            if not self._ends and isinstance(line.get("key"), str):
                self.key = str(line["key"])
            elif self._ends and _is_record(line, done):
                self.records.append(Record(**line))
            else:
                break
            self._ends.append(end)
        if self._ends:
            os.ftruncate(self._lock.fd, self._ends[-1])  # what is torn would run into the next line


def _lines(raw: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Whole lines and where each ends, up to the first that makes no sense."""
    end = 0
    for line in raw.splitlines(keepends=True):
        end += len(line)
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not (line.endswith(b"\n") and isinstance(value, dict)):
            return
        yield end, value


def _is_record(line: dict[str, Any], done: int) -> bool:
    tiles = line.get("tiles")
    kinds = line.keys() == {"tiles", "digest"} and isinstance(line["digest"], str)
    return kinds and type(tiles) is int and tiles > done
