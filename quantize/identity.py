"""What a measurement was made on, as digests: to know it again, wherever it lies."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gemcut import __version__
from gemcut.convert.model import Model
from gemcut.engine import PINNED
from gemcut.errors import OutputError
from gemcut.quantize.statistics import Statistics
from gemcut.sensitivity import Sensitivity

Key = Mapping[str, str]  # what decides a result, in words -> a digest, or a value to be read

VERSION = f"gemcut {__version__} on llama-cpp-python {PINNED}"
_LONGEST = 60  # characters of a value that is shown: no digest


def differing(found: Key, wanted: Key) -> str:
    """What two keys differ in: "context (64, now 32) and text"; empty if they are equal."""
    names = [name for name in wanted if found.get(name) != wanted[name]]
    names += sorted(found.keys() - wanted.keys())
    return listed([_difference(name, found.get(name), wanted.get(name)) for name in names])


def check_key(path: Path, found: Key, wanted: Key) -> None:
    """Raise OutputError if unfinished work at a path is of another key."""
    if difference := differing(found, wanted):
        raise OutputError(
            f"{path}: unfinished work of another {difference} lies there; the command that began "
            "it would continue, --restart begins anew"
        )


def _difference(name: str, found: str | None, wanted: str | None) -> str:
    said = [value or "none" for value in (found, wanted)]
    return name if max(map(len, said)) > _LONGEST else f"{name} ({said[0]}, now {said[1]})"


def listed(words: Sequence[str], most: int = 5) -> str:
    """Words as people list them; of many only the first."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    *others, last = words or [""]
    return f"{', '.join(others)} and {last}" if others else last


def model_key(model: Model) -> str:
    """A digest of a source as it lies there, unread, and of what is made of it."""
    hashed = hashlib.sha256(model.identity.encode())
    for each in sorted(model.tensors, key=lambda tensor: tensor.name):
        hashed.update(f"\n{each.name}\0{each.shape}\0{each.source_type}\0{each.kept}".encode())
    return hashed.hexdigest()


def sensitivity_digest(sensitivity: Sensitivity) -> str:
    """A digest of all that a sensitivity says."""
    return text_digest(sensitivity.to_json())


def text_digest(text: str) -> str:
    """A digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(model: Model) -> str:
    """A digest of a model's tensors: names, shapes, and of each the values of one row.

    The same for a checkpoint and a 16-bit GGUF of it, wherever they lie.
    """
    hashed = hashlib.sha256(model.architecture.encode())
    for tensor in sorted(model.tensors, key=lambda tensor: tensor.name):
        middle = tensor.rows // 2
        hashed.update(f"\n{tensor.name}\0{tensor.shape}\0".encode())
        hashed.update(np.ascontiguousarray(tensor.read(middle, middle + 1)).tobytes())
        model.release(0)  # around a row, the system may map megabytes
    return hashed.hexdigest()


def digest(statistics: Statistics) -> str:
    """A digest of everything in statistics that decides a measurement."""
    hashed = hashlib.sha256()
    for name, entry in sorted(statistics.entries.items()):
        hashed.update(f"\n{name}\0{entry.sums.shape}\0".encode())
        for array in (entry.sums, entry.counts, *([] if entry.gates is None else [entry.gates])):
            hashed.update(np.ascontiguousarray(array, np.float32).tobytes())
    return hashed.hexdigest()
