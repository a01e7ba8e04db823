"""Reading the table of a PyTorch file (`.bin`, `.pt`, `.pth`), without torch.

`torch.save` writes a zip archive: `data.pkl`, a pickle that builds a dict of tensors, and one
uncompressed record `data/KEY` for every storage, which can be mapped where it lies.
"""

import io
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from math import prod

from gemcut.convert.shards import DTYPES, Entry
from gemcut.convert.torch_pickle import StridedTensor, tensors
from gemcut.errors import CheckpointError

Head = Callable[[int, int], bytes]
Records = Mapping[str, zipfile.ZipInfo]

_MAX_TABLE = 1 << 24  # bytes of the pickle, or of the archive's directory: some 100,000 tensors
_MAX_DIMENSIONS = 8
_ZIP, _LOCAL_HEADER = b"PK\x03\x04", 30
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9"  # how files began before torch 1.6

# What zipfile, pickletools and the code here raise for bytes that make no sense.
_DAMAGE = (
    zipfile.BadZipFile,
    struct.error,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    EOFError,
    OSError,
)


def read(head: Head, file: str, size: int) -> dict[str, Entry]:
    """The tensors of a file of `size` bytes, by name. Those that share numbers overlap.

    Args:
        head: gives `count` bytes from `offset`.

    Raises:
        CheckpointError: the file is damaged, in torch's old format, compressed, or holds anything
            else than tensors by name.
    """
    start = head(len(_LEGACY), 0)
    if start == _LEGACY:
        raise CheckpointError(
            f"{file}: in the format before torch 1.6; save it anew: "
            f"torch.save(torch.load({file!r}, weights_only=True), {file!r})"
        )
    if not start.startswith(_ZIP):
        raise CheckpointError(f"{file}: truncated or not a PyTorch file")
    try:
        with zipfile.ZipFile(_Window(head, size)) as archive:
            records = {i.filename.partition("/")[2]: i for i in archive.infolist()}
        if _small(head, size, records, "byteorder", b"little") != b"little":
            raise ValueError("its numbers are big-endian")
        found = tensors(_small(head, size, records, "data.pkl"))
        return dict(_entries(head, file, size, records, found))
    except _DAMAGE as error:
        raise CheckpointError(f"{file}: not a table of tensors: {error}") from error


class _Window(io.RawIOBase):
    """A file of which small parts are read."""

    def __init__(self, head: Head, size: int) -> None:
        self.head, self.size, self.position = head, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("a position before the file's start")  # zipfile looks for its tables so
        self.position = base + offset
        return self.position

    def read(self, count: int | None = -1) -> bytes:
        left = max(0, self.size - self.position)
        wanted = left if count is None or count < 0 else min(count, left)
        data = self.head(_bounded(wanted), self.position)
        self.position += len(data)
        return data


def _bounded(count: int) -> int:
    if count > _MAX_TABLE:
        raise ValueError(f"a table of {count} bytes, wanted at most {_MAX_TABLE}")
    return count


def _small(
    head: Head, size: int, records: Records, name: str, default: bytes | None = None
) -> bytes:
    """The content of a small record."""
    if name not in records:
        if default is None:
            raise ValueError(f"there is no {name} in it")
        return default
    return head(_bounded(records[name].file_size), _start(head, size, records[name]))


def _start(head: Head, size: int, record: zipfile.ZipInfo) -> int:
    """Where a record's data begins: after its own header, which has another length than the one in
    the archive's directory."""
    header = head(_LOCAL_HEADER, record.header_offset)
    name, extra = struct.unpack("<HH", header[26:])
    start: int = record.header_offset + _LOCAL_HEADER + name + extra
    if not header.startswith(_ZIP) or record.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{record.filename} is damaged or compressed")
    if start + record.file_size > size:
        raise ValueError(f"truncated: {record.filename} ends after the file")
    return start


def _entries(
    head: Head, file: str, size: int, records: Records, found: Mapping[str, StridedTensor]
) -> Iterator[tuple[str, Entry]]:
    starts: dict[str, int] = {}
    for name, tensor in found.items():
        key = tensor.storage.key
        record = records.get(f"data/{key}")
        if record is None:
            raise ValueError(f"{name}: there is no data/{key} in it")
        if key not in starts:
            starts[key] = _start(head, size, record)
        first = _first_byte(name, tensor, record.file_size)
        yield name, Entry(name, tensor.dtype, tensor.shape, file, starts[key] + first)


def _first_byte(name: str, tensor: StridedTensor, available: int) -> int:
    """Where the tensor begins in its storage, once it is known to be sane and to lie within."""
    offset, shape, strides = tensor.offset, tensor.shape, tensor.strides
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        raise ValueError(f"{name}: damaged shape or strides")
    if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
        raise ValueError(f"{name}: damaged shape or strides")
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{name}: {len(shape)} dimensions")
    dense = [prod(shape[i + 1 :]) for i in range(len(shape))]
    if any(n > 1 and s != d for n, s, d in zip(shape, strides, dense, strict=True)):
        raise ValueError(f"{name}: strides {list(strides)} of {list(shape)}: save a dense copy")
    width = DTYPES[tensor.dtype].itemsize
    if (offset + prod(shape)) * width > available:
        raise ValueError(f"{name}: shape {list(shape)} of {tensor.dtype} in {available} bytes")
    return int(offset * width)
