"""Reading safetensors files: the header, and views of the data without loading it.

The safetensors package hands out numpy arrays only for types numpy has, and BF16 is none; so the
header is read here, bounded and checked, and the data is mapped. Layout: 8 bytes of header length,
a JSON header, then the data; see the safetensors format description.
"""

import json
import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemcut.errors import CheckpointError

# BF16 has no numpy type: its bits are carried as uint16, which no checkpoint uses for weights.
NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
_SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "U16": 2}
_SIZES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
_MAX_HEADER = 100_000_000  # the format's own bound: this number comes off disk


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a checkpoint: `shape` is row-major, `offset` counts from the file's start."""

    name: str
    dtype: str  # as safetensors spells it: "BF16", "F32", ...
    shape: tuple[int, ...]
    path: Path
    offset: int

    def view(self, mapped: mmap.mmap) -> npt.NDArray[Any]:
        """The mapped data as an array of this shape; BF16 as uint16 bits."""
        if self.dtype not in NUMPY_TYPES:
            raise CheckpointError(
                f"{self.path.name}: {self.name} is {self.dtype}; wanted BF16, F16 or F32"
            )
        flat = np.frombuffer(mapped, NUMPY_TYPES[self.dtype], prod(self.shape), self.offset)
        return flat.reshape(self.shape)


def read_header(path: Path) -> dict[str, SourceTensor]:
    """The tensors of a file, by name.

    Raises:
        CheckpointError: the file is missing, truncated, or its header is not what it should be.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = file.read(8)
            count = struct.unpack("<Q", length)[0] if len(length) == 8 else 0
            if not 2 <= count <= min(_MAX_HEADER, size - 8):
                raise CheckpointError(f"{path}: truncated or not a safetensors file")
            raw = file.read(count)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        found = {name: _tensor(path, name, entry, 8 + count) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged header: {error}") from error
    for tensor in found.values():
        end = tensor.offset + prod(tensor.shape) * _SIZES[tensor.dtype]
        if end > size:
            raise CheckpointError(
                f"{path}: truncated: {tensor.name} ends at byte {end}, the file at {size}; "
                "download it again"
            )
    return found


def _tensor(path: Path, name: str, entry: dict[str, Any], base: int) -> SourceTensor:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in _SIZES:
        raise CheckpointError(f"{path}: {name}: unknown type {dtype}")
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
        raise CheckpointError(f"{path}: {name}: damaged shape or offsets")
    if end - begin != prod(shape) * _SIZES[dtype]:
        raise CheckpointError(
            f"{path}: {name}: {end - begin} bytes for shape {list(shape)} of {dtype}, "
            f"wanted {prod(shape) * _SIZES[dtype]}"
        )
    return SourceTensor(name, dtype, shape, path, base + begin)
