"""A GGUF of any architecture as a source: what llama.cpp can convert, gemcut can cut.

Metadata and the tensors that llama.cpp never quantizes are carried over as they are; 16-bit,
32-bit and Q8_0 tensors can have any type. Experts that are tensors of their own become stacks.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from gemcut import ggml
from gemcut.convert.files import CHANGED, state_digest
from gemcut.convert.lazy import Array, Encoded, Matrix, Stored
from gemcut.convert.model import STRICT, Model, Reading, Tensor, is_cut
from gemcut.convert.precision import is_quantizable
from gemcut.errors import GGUFError
from gemcut.gguf_experts import Stack, together
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
    parts = _whole(path)
    files = parts.files
    reading = replace(reading, restack=reading.restack and parts.per_expert)
    architecture = files[0].get("general.architecture")
    if not isinstance(architecture, str):
        raise GGUFError(f"{path}: has no general.architecture; is it the first part of a model?")
    tensors = tuple(_tensors(parts, reading))
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
        notes=tuple(_notes(parts, reading)),
        files=frozenset(file.path.resolve() for file in files),
        identity=(identity := _identity(files)),
        check=partial(_check, files, identity),
        release=partial(_release, files),
    )


def _whole(path: Path) -> GGUFParts:
    """The files of a model, in order, checked to be all of it."""
    parts = GGUFParts(path)
    files = parts.files
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
    return parts


@dataclass(frozen=True)
class _Found:
    """A tensor of the model: one of a file, or the experts of a stack, each in its file."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[int, GGUFFile, TensorInfo], ...]  # with the files' ranks

    @cached_property
    def kinds(self) -> Counter[ggml.Type]:
        """The types that it is in, and how often."""
        return Counter(info.type for *_, info in self.parts)

    @property
    def kind(self) -> ggml.Type:
        """The largest of its types; of equal ones the one that it is in most often."""
        return max(self.kinds, key=lambda kind: (kind.bpw, self.kinds[kind], kind.name))

    def open(self) -> Array:
        """The rows, unread."""
        matrices = (_matrices(file, info) for _, file, info in self.parts)
        return Array(self.shape, tuple(chain.from_iterable(matrices)))


def _tensors(parts: GGUFParts, reading: Reading) -> Iterator[Tensor]:
    placed = {
        name: (rank, file, info)
        for rank, file in enumerate(parts.files)
        for name, info in file.tensors.items()
    }
    for each in together(parts.tensors, parts.stacks):
        infos = each.experts if isinstance(each, Stack) else (each,)
        own = tuple(placed[info.name] for info in infos)
        yield _tensor(own[0][1].path, _Found(each.name, each.shape, own), reading)


def _tensor(path: Path, found: _Found, reading: Reading) -> Tensor:
    unknown = found.kinds.keys() - set(ggml.types().values())
    if unknown and len(found.kinds) > 1:
        raise GGUFError(
            f"{path}: {found.name} has experts in {', '.join(sorted(k.name for k in unknown))}, "
            "which ggml cannot decode, beside others, so they cannot become one tensor: take "
            "another file of this model"
        )
    quantizable = is_quantizable(found.name, found.shape) and not unknown
    own = found.kind.name
    kept = _kept(path, found, reading) if quantizable else own
    rank = max(rank for rank, *_ in found.parts)
    return Tensor(
        found.name, found.shape, own, found.open, kept, quantizable, reading.nonfinite, rank
    )


def _kept(path: Path, found: _Found, reading: Reading) -> str | None:
    """The type that a tensor stays in because it is cut already."""
    if reading.requantize:
        return None
    if reading.restack:
        return found.kind.name if any(kind.quantized for kind in found.kinds) else None
    low = [kind.name for kind in found.kinds if is_cut(kind)]
    if foreign := set(low) - _NATIVE:
        raise GGUFError(
            f"{path}: {found.name} is in {min(foreign)} already, and cutting it again adds "
            "error to error: take a 16-bit or Q8_0 file, or give --allow-requantize"
        )
    return found.kind.name if low else None


def _matrices(file: GGUFFile, info: TensorInfo) -> Iterator[Matrix]:
    rows = file.rows(info.name)
    height = info.shape[-2] if len(info.shape) > 1 else 1
    for start in range(0, info.rows, height):
        own = rows[start : start + height]
        if info.type.name in _FLOATS:
            yield Stored(own.view(_FLOATS[info.type.name]))
        else:
            yield Encoded(own, info.type, info.shape[-1])


def _notes(parts: GGUFParts, reading: Reading) -> Iterator[str]:
    if reading.restack and not reading.requantize:
        yield _restacked(parts)
        return
    low = Counter(
        info.type.name
        for info in parts.tensors
        if is_cut(info.type) and is_quantizable(info.name, info.shape)
    )
    for kind, count in low.items():
        what = f"{count} tensor{'s'[: count != 1]} in {kind}"
        if reading.requantize:
            yield f"{what}: cut again from there, on top of the error that they have already"
        else:
            yield f"{what}: kept as published (--allow-requantize cuts them, too)"


def _restacked(parts: GGUFParts) -> str:
    mixed = sum(len(set(stack.types)) > 1 for stack in parts.stacks.values())
    several = f"; stacks with experts of several types ({mixed}) get the largest of them"
    return f"what is cut stays in its type{several if mixed else ''} (--allow-requantize cuts anew)"


def _identity(files: list[GGUFFile]) -> str:
    return state_digest(file.path for file in files)


def _check(files: list[GGUFFile], identity: str) -> None:
    """Raise GGUFError if they are no longer what they were."""
    try:
        same = _identity(files) == identity
    except OSError as error:
        raise GGUFError(f"{files[0].path}: has become unreadable: {error}") from error
    if not same:
        raise GGUFError(f"{files[0].path}: {CHANGED}")


def _release(files: list[GGUFFile], rank: int) -> None:
    """Give back the memory of what was read."""
    for file in files:
        file.release()
