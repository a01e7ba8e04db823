"""A GGUF of any architecture as a source: what llama.cpp can convert, gemcut can cut.

Metadata and the tensors that llama.cpp never quantizes are carried over as they are; 16-bit,
32-bit and Q8_0 tensors can have any type.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gemcut import ggml
from gemcut.convert.lazy import Array, Encoded, Matrix, Stored
from gemcut.convert.model import STRICT, Model, Reading, Tensor, is_cut
from gemcut.convert.precision import is_quantizable
from gemcut.errors import GGUFError
from gemcut.gguf_file import GGUFFile, TensorInfo
from gemcut.gguf_parts import GGUFParts
from gemcut.plan import METADATA_KEY

_FLOATS: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
}
# Models are published in these: their weights were trained or chosen in them.
_NATIVE = frozenset({"mxfp4", "nvfp4", "tq1_0", "tq2_0", "q1_0"})
# Of the file, not of the model: what it was cut to, and how.
_OF_THE_FILE = frozenset({"general.file_type", "general.quantization_version", METADATA_KEY})
_FOLDERS_OF_THE_FILE = ("split.", "quantize.imatrix.")


def open_gguf(path: Path, reading: Reading = STRICT) -> Model:
    """A GGUF's tensors and metadata, unread; of a split one all parts, given any of them.

    Raises:
        GGUFError: not a GGUF, damaged, without tensors, a part is missing, or it is cut already.
    """
    files = _whole(path)
    architecture = files[0].get("general.architecture")
    if not isinstance(architecture, str):
        raise GGUFError(f"{path}: has no general.architecture; is it the first part of a model?")
    tensors = tuple(
        _tensor(file, info, rank, reading)
        for rank, file in enumerate(files)
        for info in file.tensors.values()
    )
    if not tensors:
        raise GGUFError(f"{path}: holds no tensors: a vocabulary alone is no model")
    metadata = {
        key: value
        for key, value in files[0].metadata.items()
        if key not in _OF_THE_FILE and not key.startswith(_FOLDERS_OF_THE_FILE)
    }
    return Model(
        architecture,
        metadata,
        tensors,
        notes=tuple(_notes(tensors, reading.requantize)),
        files=frozenset(file.path.resolve() for file in files),
        identity=_identity(files),
        release=partial(_release, files),
    )


def _whole(path: Path) -> list[GGUFFile]:
    """The files of a model, in order, checked to be all of it."""
    files = GGUFParts(path).files
    count = files[0].get("split.count", 1) or 1  # 0: parts that were merged
    if not isinstance(count, int):
        raise GGUFError(f"{path}: damaged: split.count is {count!r:.60}, wanted a number")
    if len(files) != count:
        raise GGUFError(
            f"{path}: {count} parts belong together, and {len(files)} are here; parts are named "
            f"NAME-00001-of-{count:05}.gguf, and all are needed"
        )
    for number, file in enumerate(files):
        if count > 1 and (file.get("split.no"), file.get("split.count")) != (number, count):
            raise GGUFError(f"{file.path}: is not part {number + 1} of {count}, as its name says")
    total = sum(len(file.tensors) for file in files)
    if count > 1 and total != files[0].get("split.tensors.count"):
        raise GGUFError(
            f"{path}: the parts hold {total} tensors, wanted {files[0].get('split.tensors.count')}"
        )
    return files


def _tensor(file: GGUFFile, info: TensorInfo, rank: int, reading: Reading) -> Tensor:
    quantizable = is_quantizable(info.name, info.shape) and info.type in ggml.types().values()
    kept = None if quantizable else info.type.name
    if is_cut(info.type) and quantizable and not reading.requantize:
        if info.type.name not in _NATIVE:
            raise GGUFError(
                f"{file.path}: {info.name} is in {info.type} already, and cutting it again adds "
                "error to error: take a 16-bit or Q8_0 file, or give --allow-requantize"
            )
        kept = info.type.name
    build = partial(_array, file, info)
    own = info.type.name
    return Tensor(info.name, info.shape, own, build, kept, quantizable, reading.nonfinite, rank)


def _array(file: GGUFFile, info: TensorInfo) -> Array:
    height = info.shape[-2] if len(info.shape) > 1 else 1
    count = prod(info.shape[:-2])
    return Array(info.shape, tuple(_matrices(file, info, count, height)))


def _matrices(file: GGUFFile, info: TensorInfo, count: int, height: int) -> Iterator[Matrix]:
    rows = file.rows(info.name)
    for number in range(count):
        own = rows[number * height : (number + 1) * height]
        if info.type.name in _FLOATS:
            yield Stored(own.view(_FLOATS[info.type.name]))
        else:
            yield Encoded(own, info.type, info.shape[-1])


def _notes(tensors: tuple[Tensor, ...], requantize: bool) -> Iterator[str]:
    low = Counter(
        tensor.source_type
        for tensor in tensors
        if tensor.quantizable and is_cut(ggml.type_named(tensor.source_type))
    )
    for kind, count in low.items():
        what = f"{count} tensor{'s'[: count != 1]} in {kind}"
        if requantize:
            yield f"{what}: cut again from there, on top of the error that they have already"
        else:
            yield f"{what}: kept as published (--allow-requantize cuts them, too)"


def _identity(files: list[GGUFFile]) -> str:
    digest = hashlib.sha256()
    for file in files:
        stat = file.path.stat()
        digest.update(f"{file.path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _release(files: list[GGUFFile], rank: int) -> None:
    """Give back the memory of what was read."""
    for file in files:
        file.release()
