"""A sample of what was written, decoded from the finished file and held against its source.

While tiles are written, a few rows of every tensor are encoded once more, one by one. When the file
is complete it is opened as any reader would open it, and these rows are decoded from there: that
finds a wrong offset, shape, type or row, and a disk or a memory that gives back something else.
Tiles that an earlier run wrote were compared with its journal instead.
"""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

import numpy as np

from gemcut import ggml
from gemcut.errors import GGUFError, OutputError
from gemcut.gguf_file import GGUFFile
from gemcut.quantize.tiles import Tile, encode

_DRAWN = 2  # rows of every tensor, beside its first and its last

_Rows = dict[tuple[str, int], bytes]  # by tensor and number: a digest, for there may be millions


class Sample:
    """Rows that the file has to hold. `take` may be called from several threads."""

    def __init__(self) -> None:
        self._rows: _Rows = {}

    def take(self, tile: Tile) -> None:
        """Encode those of a tile's rows that belong to the sample. Raises EngineError."""
        for row in _numbers(tile.tensor.name, tile.tensor.rows):
            if tile.start <= row < tile.stop:
                encoded = encode(tile.tensor, tile.type, row, row + 1, tile.importance)
                self._rows[tile.tensor.name, row] = _digest(tile.type, encoded, tile.tensor.columns)

    def check(self, files: Mapping[Path, Path]) -> None:
        """Decode the sample from the files that hold it.

        Args:
            files: the final names, and where the files lie.

        Raises:
            OutputError: a file cannot be read as a GGUF, or holds other weights.
        """
        left = dict(self._rows)
        for path, lies in files.items():
            try:
                with GGUFFile(lies) as file:
                    self._check(path, file, left)
            except GGUFError as error:
                raise OutputError(f"{path}: cannot be read after writing: {error}") from error
        if left:
            name, _ = next(iter(left))
            raise OutputError(f"{name} is in none of the files that were written")

    def _check(self, path: Path, file: GGUFFile, left: _Rows) -> None:
        for name, row in [key for key in left if key[0] in file.tensors]:
            info, wanted = file.tensors[name], left.pop((name, row))
            found = _digest(info.type, file.rows(name, row, row + 1), info.shape[-1])
            if found != wanted:
                raise OutputError(
                    f"{path}: row {row} of {name} is not what was encoded, so nothing was kept: "
                    "memory or disk failed, or another program wrote there; write it again"
                )


def _digest(kind: ggml.Type, rows: ggml.Bytes, columns: int) -> bytes:
    """Of the decoded values; of what ggml does not decode, a table of integers, of the bytes."""
    decoded = ggml.dequantize(kind, rows, columns) if kind.name in ggml.types() else rows
    return blake2b(decoded.tobytes(), digest_size=16).digest()


def _numbers(name: str, rows: int) -> set[int]:
    """The first row, the last, and some between that depend on nothing but the name."""
    drawn = np.random.default_rng(crc32(name.encode())).integers(rows, size=_DRAWN)
    return {0, rows - 1, *drawn.tolist()}
