"""Writing GGUF files: the layout first, then rows at their offsets in any order.

The file grows under a temporary name beside its final one, its whole size reserved at once so
that a full disk is noticed before any work is done, and is renamed when every byte is written.
"""

import errno
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock

import numpy as np

from gemcut import ggml
from gemcut.errors import GGUFError, OutputError
from gemcut.gguf_file import ALIGNMENT, ARRAY, MAGIC, SCALARS, STRING, TensorInfo, Value

VERSION = 3


def aligned(size: int) -> int:
    """The size rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def header(metadata: Mapping[str, Value], tensors: Iterable[TensorInfo]) -> bytes:
    """Everything before the data: magic, metadata, tensor table, padding.

    Raises:
        GGUFError: a metadata value does not fit its kind.
    """
    table = list(tensors)
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(table), len(metadata))]
    for key, value in metadata.items():
        try:
            parts += [_string(key), _value(value)]
        except (struct.error, AttributeError, OverflowError, TypeError, ValueError) as error:
            raise GGUFError(f"{key}: {value.data!r:.60} is no {value.kind}: {error}") from error
    for info in table:
        shape = info.shape[::-1]
        layout = f"<I{len(shape)}QIQ"
        fields = (len(shape), *shape, info.type.id, info.offset)
        parts += [_string(info.name), struct.pack(layout, *fields)]
    size = sum(map(len, parts))
    return b"".join([*parts, bytes(aligned(size) - size)])


def laid_out(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """The tensors with their offsets in the data section, in the order given."""
    placed, offset = [], 0
    for info in tensors:
        placed.append(TensorInfo(info.name, info.shape, info.type, offset))
        offset += aligned(info.nbytes)
    return placed


def file_size(metadata: Mapping[str, Value], tensors: Iterable[TensorInfo]) -> int:
    """Bytes of the finished file: its size is arithmetic, known before anything is written."""
    table = list(tensors)
    return len(header(metadata, table)) + sum(aligned(info.nbytes) for info in table)


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
        """
        self.path = Path(path)
        self.tensors = {info.name: info for info in laid_out(tensors)}
        self._missing = {info.name: info.rows for info in self.tensors.values()}
        self._lock = Lock()
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        head = header(metadata, self.tensors.values())
        self._data_offset = len(head)
        size = len(head) + sum(aligned(info.nbytes) for info in self.tensors.values())
        try:
            self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from error
        try:
            _reserve(self._fd, size)
            _write_at(self._fd, head, 0)
        except OSError as error:
            self.discard()
            wanted = f"{size / 1e9:.2f} GB are needed"
            raise OutputError(f"{self.path}: {error.strerror}; {wanted}") from error

    def write(self, name: str, start: int, rows: ggml.Bytes) -> None:
        """Put encoded rows [n, row_bytes] at row `start` of a tensor.

        Raises:
            OutputError: the rows do not lie within the tensor, or the disk refuses them.
        """
        info = self.tensors[name]
        if rows.shape[1] != info.row_bytes or start + len(rows) > info.rows:
            raise OutputError(
                f"{name}: rows {start} to {start + len(rows)} of {rows.shape[1]} bytes, "
                f"wanted {info.rows} rows of {info.row_bytes}"
            )
        at = self._data_offset + info.offset + start * info.row_bytes
        try:
            _write_at(self._fd, np.ascontiguousarray(rows).data.cast("B"), at)
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror} while writing {name}") from error
        with self._lock:
            self._missing[name] -= len(rows)

    def finish(self) -> None:
        """Flush, and give the file its final name.

        Raises:
            OutputError: rows are missing, or the file system refuses.
        """
        unwritten = [name for name, count in self._missing.items() if count]
        if unwritten:
            raise OutputError(f"{self.path}: rows of {', '.join(unwritten[:3])} were not written")
        try:
            try:
                os.fsync(self._fd)
            finally:
                os.close(self._fd)
            os.replace(self._partial, self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error

    def discard(self) -> None:
        """Remove what was written."""
        os.close(self._fd)
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> "GGUFWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.finish()
        except BaseException:
            self._partial.unlink(missing_ok=True)
            raise


def _reserve(fd: int, size: int) -> None:
    os.ftruncate(fd, size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # some file systems cannot
                raise


def _write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    if value.kind == "str":
        return struct.pack("<I", STRING) + _string(value.data)
    if value.kind == "[str]":
        items = b"".join(map(_string, value.data))
        return struct.pack("<IIQ", ARRAY, STRING, len(value.data)) + items
    if value.kind.startswith("["):
        number, code = SCALARS[value.kind[1:-1]]
        items = np.asarray(value.data, np.dtype(code).newbyteorder("<")).tobytes()
        return struct.pack("<IIQ", ARRAY, number, len(value.data)) + items
    number, code = SCALARS[value.kind]
    return struct.pack("<I" + code, number, value.data)
