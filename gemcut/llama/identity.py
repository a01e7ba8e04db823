"""Which model it is: a digest that another file, or the same name with other weights, has not."""

import hashlib
import os
from pathlib import Path

from gemcut.errors import EngineError
from gemcut.gguf_parts import part_paths
from gemcut.llama.loadable import states_of
from gemcut.llama.model import Model

_SAMPLES, _SAMPLE = 64, 4096  # pieces of a file, and their bytes


def identity(model: Model) -> str:
    """A digest of a loaded model's metadata and of pieces from all over its file: hex.

    Whatever changes weights, be it another importance matrix, changes nearly all of a tensor, so
    that pieces of each file tell as much as the whole, which may be many gigabytes.

    Raises:
        EngineError: the file is no longer the one that was loaded.
    """
    digest = hashlib.sha256()
    for item in model.all_metadata():
        digest.update(repr(item).encode())
    path = model.path
    if path is None:
        raise EngineError("the model was not loaded from a file: there is nothing to know it by")
    try:
        for part in part_paths(path):
            _sample(part, digest)
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from error
    if states_of(path) != model.states:
        raise EngineError(f"{path}: was changed since it was loaded: load it again")
    return digest.hexdigest()


def _sample(path: Path, digest: "hashlib._Hash") -> None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        for number in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
