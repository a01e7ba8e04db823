"""Writing GGUF files: the layout first, then rows at their offsets in any order.

A file grows under a temporary name beside its final one, its whole size reserved at once so that
a full disk is noticed before any work is done, and is renamed when every byte is written.
"""

import errno
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from gemcut import ggml
from gemcut.errors import OutputError
from gemcut.gguf_file import TensorInfo, Value
from gemcut.gguf_layout import Layout, aligned
from gemcut.outputs import completed
from gemcut.positions import BINARY, allocated, read_at, write_at


class PartialFile:
    """A GGUF under a temporary name. `write` may be called from several threads, in any order."""

    def __init__(self, path: Path, partial: Path, layout: Layout, keep: bool = False) -> None:
        """Open the partial file; `reserve` makes it as long as it will be, and writes the header.

        Args:
            keep: the partial file may be there already, and what it holds is of use.

        Raises:
            OutputError: the folder is missing or not writable.
            GGUFError: a metadata value does not fit its kind.
        """
        self.path, self.partial, self.layout = path, partial, layout
        layout.header  # noqa: B018  # a value that cannot be written is found before a file is made
        self._infos = {info.name: info for info in layout.placed}
        self._missing = {info.name: info.rows for info in layout.placed}
        self._lock = Lock()
        self._unsynced = True
        try:
            flags = os.O_RDWR | os.O_CREAT | BINARY | (0 if keep else os.O_TRUNC)
            self.fd = os.open(partial, flags, 0o644)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error

    def write(self, name: str, start: int, rows: ggml.Bytes) -> int:
        """Put encoded rows [n, row_bytes] at row `start` of a tensor.

        Returns:
            Their CRC-32, with that of the padding behind the tensor's last row.

        Raises:
            OutputError: the rows do not lie within the tensor, or the disk refuses them.
        """
        info = self._infos[name]
        if rows.shape[1] != info.row_bytes or start + len(rows) > info.rows:
            raise OutputError(
                f"{name}: rows {start} to {start + len(rows)} of {rows.shape[1]} bytes, "
                f"wanted {info.rows} rows of {info.row_bytes}"
            )
        begin, end = self._extent(info, start, start + len(rows))
        data = np.ascontiguousarray(rows).data.cast("B")
        padding = bytes(end - begin - len(data))
        try:
            _write_at(self.fd, data, begin)
            _write_at(self.fd, padding, end - len(padding))
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror} while writing {name}") from error
        self._unsynced = True
        self.accept(name, len(rows))
        return zlib.crc32(padding, zlib.crc32(data))

    def checksum(self, name: str, start: int, stop: int) -> int:
        """What `write` returned for these rows, if the file still holds them.

        Raises:
            OutputError: the disk does not give them back.
        """
        begin, end = self._extent(self._infos[name], start, stop)
        try:
            return zlib.crc32(read_at(self.fd, end - begin, begin))
        except OSError as error:
            raise OutputError(f"{self.partial}: {error.strerror} while reading {name}") from error

    def accept(self, name: str, rows: int) -> None:
        """Count rows of a tensor as written."""
        with self._lock:
            self._missing[name] -= rows

    def _extent(self, info: TensorInfo, start: int, stop: int) -> tuple[int, int]:
        """Where rows lie in the file; the last ones include what pads the tensor."""
        base = self.layout.data_offset + info.offset
        end = stop * info.row_bytes
        if stop == info.rows:
            end = aligned(end, self.layout.alignment)
        return base + start * info.row_bytes, base + end

    def sync(self) -> None:
        """Wait until what was written is on the disk. Raises OSError."""
        if self._unsynced:
            self._unsynced = False  # first: what is written meanwhile may come too late for it
            getattr(os, "fdatasync", os.fsync)(self.fd)

    def check(self) -> None:
        """Raise OutputError if the file is not complete."""
        unwritten = [name for name, count in self._missing.items() if count]
        if unwritten:
            names = ", ".join(unwritten[:3])
            raise OutputError(f"{self.path}: rows of {names} were not written")
        size = os.fstat(self.fd).st_size
        if size != self.layout.size:
            raise OutputError(
                f"{self.path}: has become {size} bytes long, wanted {self.layout.size}: "
                "does another program write to it?"
            )

    def publish(self) -> None:
        """Flush, close, and give the file its final name. Raises OSError."""
        os.fsync(self.fd)
        self.close()
        os.replace(self.partial, self.path)
        sync_folder(self.path.parent)

    def close(self) -> None:
        """Close; what was written stays under the temporary name. Closing again does nothing."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def discard(self) -> None:
        """Close, and remove what was written."""
        self.close()
        self.partial.unlink(missing_ok=True)


class GGUFWriter:
    """A file being written; a context manager that finishes or discards it.

    `write` may be called from several threads and in any order.
    """

    def __init__(
        self, path: Path, metadata: Mapping[str, Value], tensors: Iterable[TensorInfo]
    ) -> None:
        """Reserve the whole file under a temporary name and write its header.

        Raises:
            OutputError: the folder is missing or not writable, or the disk is too small.
            GGUFError: a metadata value does not fit its kind.
        """
        path, layout = Path(path), Layout(metadata, tuple(tensors))
        with ExitStack() as stack:
            partial = stack.enter_context(completed(path))
            self._file = PartialFile(path, partial, layout)
            stack.callback(self._file.close)
            reserve([self._file])
            self._stack = stack.pop_all()

    def write(self, name: str, start: int, rows: ggml.Bytes) -> None:
        """Put encoded rows [n, row_bytes] at row `start` of a tensor.

        Raises:
            OutputError: the rows do not lie within the tensor, or the disk refuses them.
        """
        self._file.write(name, start, rows)

    def __enter__(self) -> "GGUFWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *failure: Any) -> None:
        if kind is not None:
            self._stack.__exit__(kind, *failure)
            return
        with self._stack:
            self._file.check()


def reserve(files: Sequence[PartialFile]) -> None:
    """Take the whole room of files that lie in one folder, and write their headers.

    Raises:
        OutputError: the disk is too small.
    """
    path = files[0].path
    free = wanted = 0
    try:
        free = shutil.disk_usage(path.parent).free
        wanted = sum(max(0, file.layout.size - _allocated(file.fd)) for file in files)
        if sum(_lacking(file.fd, file.layout.size) for file in files) > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for file in files:
            _write_at(file.fd, file.layout.header, 0)
    except OSError as error:
        room = f"{wanted / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
        raise OutputError(f"{path}: {error.strerror}; {room}") from error


def _lacking(fd: int, size: int) -> int:
    """Make the file that long; returns the bytes for which no room could be reserved."""
    os.ftruncate(fd, size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return 0
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # some file systems cannot
                raise
    return max(0, size - _allocated(fd))


def _allocated(fd: int) -> int:
    return allocated(os.fstat(fd))


def _write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = write_at(fd, view, offset)
        view, offset = view[written:], offset + written


def sync_folder(folder: Path) -> None:
    """Wait until new names in a folder are on the disk, where the file system can be asked to."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
