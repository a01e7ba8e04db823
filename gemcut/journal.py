"""The journal of unfinished work: which part of it is safely on the disk.

JSON lines. The first holds a key, a digest of everything that decides the result; each further one
says how many tiles are done and what their bytes add up to. A line is only written when its bytes
are on the disk, so whatever ends the process, the journal is right; a last line may be torn.
"""

import fcntl
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gemcut.closing import Closing
from gemcut.gguf_writer import sync_folder

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

    def __init__(self, path: Path) -> None:
        """Open, lock and read; a new one is empty, and so is one that nobody can make out.

        Raises:
            BlockingIOError: another process has it open.
            OSError: the folder is not writable.
        """
        self.path = path
        self._fd = _opened(path)
        self.key = ""
        self.records: list[Record] = []
        self._ends: list[int] = []  # of the key's line, and of every record's
        self._read()

    def begin(self, key: str) -> None:
        """Forget everything, and write the key of the work that begins. Raises OSError."""
        self.key, self.records, self._ends = key, [], []
        os.ftruncate(self._fd, 0)
        self._append({"key": key})
        sync_folder(self.path.parent)

    def append(self, record: Record) -> None:
        """Add a record; it is on the disk when this returns. Raises OSError."""
        self._append(asdict(record))
        self.records.append(record)

    def keep(self, count: int) -> None:
        """Forget all records but the first ones. Raises OSError."""
        del self.records[count:], self._ends[count + 1 :]
        os.ftruncate(self._fd, self._ends[-1])

    def remove(self) -> None:
        """Delete the file, and close it."""
        if self._fd >= 0:
            self.path.unlink(missing_ok=True)  # first: nobody must lock what is about to go
        self.close()

    def close(self) -> None:
        """Close, which unlocks; closing again does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _append(self, line: dict[str, Any]) -> None:
        end = self._ends[-1] if self._ends else 0
        raw = json.dumps(line).encode() + b"\n"
        if os.pwrite(self._fd, raw, end) < len(raw):
            raise OSError(0, "the journal cannot be written")
        getattr(os, "fdatasync", os.fsync)(self._fd)
        self._ends.append(end + len(raw))

    def _read(self) -> None:
        for end, line in _lines(os.pread(self._fd, _MAX_SIZE, 0)):
            done = self.records[-1].tiles if self.records else 0
            if not self._ends and isinstance(line.get("key"), str):
                self.key = str(line["key"])
            elif self._ends and _is_record(line, done):
                self.records.append(Record(**line))
            else:
                break
            self._ends.append(end)
        if self._ends:
            os.ftruncate(self._fd, self._ends[-1])  # what is torn would run into the next line


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


def _opened(path: Path) -> int:
    """A descriptor that alone holds the file's lock, and whose file still has that name."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(fd)
            if _is_at(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the process that held it has just finished, and removed it


def _lock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some file systems cannot lock
        return


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
