"""Importance matrices: a weight for every input column of every matrix, per expert.

Read from llama.cpp's imatrix GGUF: `<tensor>.in_sum2` [matrices, columns] holds sums of squared
activations and `<tensor>.counts` [matrices, 1] the number of rows behind each.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gemcut import ggml
from gemcut.errors import GGUFError
from gemcut.gguf_file import GGUFFile

Importance = Mapping[str, ggml.Floats]  # GGUF tensor name -> [matrices, columns]

_SUMS, _COUNTS = ".in_sum2", ".counts"


def read_importance(path: Path) -> dict[str, ggml.Floats]:
    """Mean squared activations of every tensor in the file, as llama-quantize takes them.

    An expert that was never reached gets ones, as llama-quantize does.

    Raises:
        GGUFError: not a GGUF, no imatrix, or sums that do not go with their counts.
    """
    with GGUFFile(path) as file:
        if file.get("general.type") != "imatrix":
            raise GGUFError(f"{path}: not an importance matrix: general.type is not 'imatrix'")
        names = [name[: -len(_SUMS)] for name in file.tensors if name.endswith(_SUMS)]
        return {name: _mean(file, name) for name in names}


def _mean(file: GGUFFile, name: str) -> ggml.Floats:
    sums, counts = _floats(file, name + _SUMS), _floats(file, name + _COUNTS)
    if counts.size != len(sums):
        raise GGUFError(f"{file.path}: {name}: {counts.size} counts for {len(sums)} matrices")
    counts = counts.reshape(-1, 1)
    mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(1))
    if not np.isfinite(mean).all() or (mean < 0).any():
        raise GGUFError(f"{file.path}: {name}: an importance is negative or not finite")
    return mean.astype(np.float32)


def _floats(file: GGUFFile, name: str) -> ggml.Floats:
    info = file.tensors.get(name)
    if info is None or info.type.name != "f32":
        raise GGUFError(f"{file.path}: no F32 tensor {name}")
    return file.rows(name).view(np.float32).reshape(-1, info.shape[-1])
