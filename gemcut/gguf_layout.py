"""The layout of GGUF files: what is before the data, and where every tensor lies.

All of it is arithmetic on names and shapes, known before anything is written. A result is one file
or, when it is split, several that llama.cpp loads as one.
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from gemcut.errors import GGUFError, OutputError, UsageError
from gemcut.gguf_file import (
    ALIGNMENT,
    ALIGNMENT_KEY,
    ARRAY,
    MAGIC,
    SCALARS,
    STRING,
    TensorInfo,
    Value,
)

VERSION = 3
_MAX_ALIGNMENT = 1 << 20  # a damaged one must not make gigabytes of padding
_MAX_FILES = 0xFFFF  # split.count is a u16

_T = TypeVar("_T")


def aligned(size: int, alignment: int = ALIGNMENT) -> int:
    """The size rounded up to the alignment."""
    return -(-size // alignment) * alignment


def alignment_of(metadata: Mapping[str, Value]) -> int:
    """What the offsets of a file with this metadata are multiples of.

    Raises:
        GGUFError: it is no power of two, or absurdly large.
    """
    value = metadata.get(ALIGNMENT_KEY, Value("u32", ALIGNMENT))
    number = value.data
    whole = value.kind == "u32" and isinstance(number, int) and 0 < number <= _MAX_ALIGNMENT
    if not whole or number & (number - 1):
        raise GGUFError(
            f"{ALIGNMENT_KEY}: {number!r} ({value.kind}), wanted a u32 that is a power of two"
        )
    return int(number)


def laid_out(tensors: Iterable[TensorInfo], alignment: int = ALIGNMENT) -> list[TensorInfo]:
    """The tensors with their offsets in the data section, in the order given."""
    placed, offset = [], 0
    for info in tensors:
        placed.append(TensorInfo(info.name, info.shape, info.type, offset))
        offset += aligned(info.nbytes, alignment)
    return placed


def header(metadata: Mapping[str, Value], tensors: Iterable[TensorInfo]) -> bytes:
    """Everything before the data: magic, metadata, tensor table, padding.

    Raises:
        GGUFError: a metadata value does not fit its kind.
    """
    table = list(tensors)
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(table), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _checked(key, value, _value)]
    for info in table:
        shape = info.shape[::-1]
        layout = f"<I{len(shape)}QIQ"
        fields = (len(shape), *shape, info.type.id, info.offset)
        parts += [_string(info.name), struct.pack(layout, *fields)]
    size = sum(map(len, parts))
    return b"".join([*parts, bytes(aligned(size, alignment_of(metadata)) - size)])


def header_size(metadata: Mapping[str, Value], tensors: Iterable[TensorInfo]) -> int:
    """Length of the header, counted without making it: a vocabulary is long.

    Raises:
        GGUFError: a metadata value is not of its kind.
    """
    size = len(MAGIC) + struct.calcsize("<IQQ")
    for key, value in metadata.items():
        size += 8 + len(_raw(key)) + _checked(key, value, _value_size)
    for info in tensors:
        size += 8 + len(_raw(info.name)) + struct.calcsize(f"<I{len(info.shape)}QIQ")
    return aligned(size, alignment_of(metadata))


def file_size(metadata: Mapping[str, Value], tensors: Iterable[TensorInfo]) -> int:
    """Bytes of the finished file: its size is known before anything is written."""
    return Layout(metadata, tuple(tensors)).size


@dataclass(frozen=True)
class Layout:
    """One file to be: its metadata, and its tensors in their order."""

    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]

    @cached_property
    def alignment(self) -> int:
        """What offsets are multiples of."""
        return alignment_of(self.metadata)

    @cached_property
    def placed(self) -> tuple[TensorInfo, ...]:
        """The tensors with their offsets."""
        return tuple(laid_out(self.tensors, self.alignment))

    @cached_property
    def header(self) -> bytes:
        """Everything before the data."""
        return header(self.metadata, self.placed)

    @cached_property
    def data_offset(self) -> int:
        """Where the data begins."""
        return header_size(self.metadata, self.tensors)

    @cached_property
    def size(self) -> int:
        """Bytes of the finished file."""
        return self.data_offset + sum(aligned(t.nbytes, self.alignment) for t in self.tensors)


def layouts(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Iterable[TensorInfo],
    split_size: int | None = None,
) -> dict[Path, Layout]:
    """The files that a result consists of, by their final names: one, or with a size several.

    Divided as llama.cpp's gguf-split does it: by the bytes of the tensors, in their order, with
    all metadata in the first file. A tensor is never divided, so one that is larger than
    `split_size` makes a larger file. What fits into one file is NAME-00001-of-00001.gguf.

    Raises:
        OutputError: there would be more files than a loader can count.
        UsageError: no size.
    """
    if split_size is None:
        return {path: Layout(metadata, tuple(tensors))}
    if split_size < 1:
        raise UsageError(f"files of {split_size} bytes: wanted a size, as 4G")
    groups = _groups(tensors, split_size)
    if len(groups) > _MAX_FILES:
        raise OutputError(f"{path}: {len(groups)} files; wanted a larger split size")
    own = {key: value for key, value in metadata.items() if not key.startswith("split.")}
    total = sum(map(len, groups))
    return {
        split_path(path, number, len(groups)): Layout(
            (own if number == 1 else {}) | _split_keys(number, len(groups), total), tuple(group)
        )
        for number, group in enumerate(groups, 1)
    }


def split_path(path: Path, number: int, count: int) -> Path:
    """The name of one of several files, from 1, as llama.cpp looks for it."""
    prefix = path.name.removesuffix(".gguf")
    return path.with_name(f"{prefix}-{number:05}-of-{count:05}.gguf")


def _groups(tensors: Iterable[TensorInfo], limit: int) -> list[list[TensorInfo]]:
    groups: list[list[TensorInfo]] = [[]]
    size = 0
    for info in tensors:
        nbytes = aligned(info.nbytes)
        if groups[-1] and size + nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(info)
        size += nbytes
    return groups


def _split_keys(number: int, count: int, tensors: int) -> dict[str, Value]:
    return {
        "split.no": Value("u16", number - 1),
        "split.tensors.count": Value("i32", tensors),
        "split.count": Value("u16", count),
    }


def _checked(key: str, value: Value, use: Callable[[Value], _T]) -> _T:
    try:
        return use(value)
    except (struct.error, AttributeError, OverflowError, TypeError, ValueError) as error:
        raise GGUFError(f"{key}: {value.data!r:.60} is no {value.kind}: {error}") from error


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _string(text: str) -> bytes:
    raw = _raw(text)
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


def _value_size(value: Value) -> int:
    """Length of `_value`; strings are encoded all at once, which is what makes it cheap."""
    if value.kind == "str":
        return 4 + 8 + len(_raw(value.data))
    if value.kind == "[str]":
        return 16 + 8 * len(value.data) + len(_raw("".join(value.data)))
    if value.kind.startswith("["):
        return 16 + struct.calcsize("<" + SCALARS[value.kind[1:-1]][1]) * len(value.data)
    return 4 + struct.calcsize("<" + SCALARS[value.kind][1])
