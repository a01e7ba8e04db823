"""Reading the header of a safetensors file: bounded, checked, without touching the data.

The safetensors package hands out numpy arrays only for types numpy has, and BF16 is none; so the
header is read here and the data is mapped (`shards`). Layout: 8 bytes of header length, a JSON
header, then the data; see the safetensors format description.
"""

import json
import struct
from collections.abc import Callable, Iterable
from math import prod
from typing import Any

from gemcut.convert.shards import DTYPES, Entry
from gemcut.errors import CheckpointError

LENGTH = 8  # bytes before the header
_MAX_HEADER = 100_000_000  # the format's own bound: this number comes off disk
_MAX_DIMENSIONS = 8


def read_header(head: Callable[[int, int], bytes], file: str, size: int) -> dict[str, Entry]:
    """The tensors of a file of `size` bytes, by name.

    Args:
        head: gives `count` bytes from `offset`.

    Raises:
        CheckpointError: the file is truncated, or its header is not what it should be.
    """
    length = head(LENGTH, 0)
    count = struct.unpack("<Q", length)[0] if len(length) == LENGTH else 0
    if not 2 <= count <= min(_MAX_HEADER, size - LENGTH):
        raise CheckpointError(f"{file}: truncated or not a safetensors file")
    try:
        pairs = json.loads(head(count, LENGTH), object_pairs_hook=_unique)
        pairs.pop("__metadata__", None)
        found = {name: _entry(file, name, each, LENGTH + count) for name, each in pairs.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged header: {error}") from error
    _check_spans(file, found.values(), size)
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is in it twice")
        found[name] = value
    return found


def _entry(file: str, name: str, entry: dict[str, Any], base: int) -> Entry:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"{name}: unknown type {dtype}")
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"{name}: damaged shape or offsets")
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{name}: {len(shape)} dimensions")
    wanted = prod(shape) * DTYPES[dtype].itemsize
    if end - begin != wanted:
        raise ValueError(
            f"{name}: {end - begin} bytes for shape {list(shape)} of {dtype}, wanted {wanted}"
        )
    return Entry(name, dtype, shape, file, base + begin)


def _check_spans(file: str, entries: Iterable[Entry], size: int) -> None:
    end, last = 0, ""
    for entry in sorted(entries, key=lambda e: (e.offset, e.nbytes)):
        if entry.nbytes and entry.offset < end:
            raise CheckpointError(f"{file}: damaged header: {last} and {entry.name} overlap")
        end, last = max(end, entry.offset + entry.nbytes), entry.name
    if end > size:
        raise CheckpointError(
            f"{file}: truncated: {last} ends at byte {end}, the file at {size}; download it again"
        )
