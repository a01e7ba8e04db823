"""What a measurement was made on, as digests: to know it again, wherever it lies."""

import hashlib

import numpy as np

from gemcut.convert.model import Model
from gemcut.quantize.statistics import Statistics


def fingerprint(model: Model) -> str:
    """A digest of a model's tensors: names, shapes, and of each the values of one row.

    The same for a checkpoint and a 16-bit GGUF of it, wherever they lie.
    """
    hashed = hashlib.sha256(model.architecture.encode())
    for tensor in sorted(model.tensors, key=lambda tensor: tensor.name):
        middle = tensor.rows // 2
        hashed.update(f"\n{tensor.name}\0{tensor.shape}\0".encode())
        hashed.update(np.ascontiguousarray(tensor.read(middle, middle + 1)).tobytes())
    return hashed.hexdigest()


def digest(statistics: Statistics) -> str:
    """A digest of everything in statistics that decides a measurement."""
    hashed = hashlib.sha256()
    for name, entry in sorted(statistics.entries.items()):
        hashed.update(f"\n{name}\0{entry.sums.shape}\0".encode())
        for array in (entry.sums, entry.counts, *([] if entry.gates is None else [entry.gates])):
            hashed.update(np.ascontiguousarray(array, np.float32).tobytes())
    return hashed.hexdigest()
