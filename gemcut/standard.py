"""Whether a file is a standard GGUF: what llama.cpp itself and its Python package make of it.

Three readers have to agree: the strict one of this package, gguf-py, and llama.cpp's own loader,
which finds every tensor that the architecture needs, in the shape that it needs, without reading
one (in a process of its own). Then stands what programs over llama.cpp look for beside that.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gemcut.engine import PINNED, ContextOptions, ModelOptions
from gemcut.errors import EngineError, printable
from gemcut.gguf_file import ARRAY, SCALARS, STRING, GGUFFile, Value
from gemcut.gguf_layout import aligned
from gemcut.gguf_parts import GGUFParts, part_paths
from gemcut.llama.experts import ADVICE
from gemcut.llama.memory import probe

_TOKENS = 256  # of the context that llama.cpp is asked about
_SPLIT = "Ollama takes such files from 0.35 on; older ones, after llama-gguf-split --merge"
_TEMPLATE = "Ollama and LM Studio need to be told one"
_LEGACY = 2  # the version before the present one


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ok: None where it is no fault, but worth knowing."""

    name: str
    ok: bool | None
    found: str


@dataclass(frozen=True)
class Verdict:
    """What was found; `standard` if any program over llama.cpp should load the file."""

    checks: tuple[Check, ...]

    @property
    def standard(self) -> bool:
        """Whether nothing is wrong."""
        return all(check.ok is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON knows it."""
        return {"standard": self.standard, "checks": [asdict(check) for check in self.checks]}


def check_standard(path: Path) -> Verdict:
    """Check a GGUF, or all parts of a split one; nothing of the tensors is read.

    Raises:
        GGUFError: it is none, or damaged: the other readers are not shown it.
    """
    with GGUFParts(path) as parts:
        found = [_whole(parts), _stacks(parts)]
        if all(check.ok for check in found):
            found += [_layout(parts), _as_gguf_py(parts), _as_llama(path)]
        return Verdict((*found, *_beside(path, parts)))


def _whole(parts: GGUFParts) -> Check:
    tensors = sum(len(file.tensors) for file in parts.files)
    values = sum(len(file.metadata) for file in parts.files)
    if parts.missing:
        return Check("file", False, f"{parts.missing} of {parts.count} parts are missing")
    number = f" in {parts.count} parts" if parts.count > 1 else ""
    return Check("file", True, f"{tensors} tensors, {values} metadata values{number}")


def _stacks(parts: GGUFParts) -> Check:
    if parts.per_expert:
        return Check("experts", False, f"types per expert, for gemcut alone: {ADVICE}")
    return Check("experts", True, "no stack with types of its own")


def _layout(parts: GGUFParts) -> Check:
    """What ggml demands: tensors one behind the other, each padded to the alignment."""
    for file in parts.files:
        expected = 0
        for info in file.tensors.values():
            if info.offset != expected:
                where = f"{info.name} begins at {info.offset}, wanted {expected}"
                return Check("layout", False, printable(f"{file.path.name}: {where}"))
            expected += aligned(info.nbytes, file.alignment)
        if file.version == _LEGACY:
            return Check("layout", None, f"{file.path.name}: GGUF version 2, which is outdated")
    return Check("layout", True, "GGUF version 3, tensors in order and aligned")


def _as_gguf_py(parts: GGUFParts) -> Check:
    from importlib.metadata import version

    name = f"gguf-py {version('gguf')}"
    for file in parts.files:
        if difference := _difference(file):
            return Check(name, False, printable(f"{file.path.name}: {difference}"))
    return Check(name, True, "reads the same names, types, shapes, places and metadata")


def _difference(file: GGUFFile) -> str | None:
    """What gguf-py reads otherwise, or None."""
    from gguf import GGUFReader

    try:
        return _compared(file, GGUFReader(file.path))
    except (ValueError, LookupError, TypeError, OSError) as error:
        return f"refused: {error}"


def _compared(file: GGUFFile, reader: Any) -> str | None:
    theirs = {
        each.name: (
            each.tensor_type.name.lower(),
            tuple(int(length) for length in reversed(each.shape)),
            int(each.data_offset),
            int(each.n_bytes),
        )
        for each in reader.tensors
    }
    ours = {
        info.name: (info.type.name, info.shape, file.data_offset + info.offset, info.nbytes)
        for info in file.tensors.values()
    }
    if theirs != ours:
        name = next(n for n in (*ours, *theirs) if ours.get(n) != theirs.get(n))
        return f"{name}: {theirs.get(name)}, wanted {ours.get(name)}"
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return next(_other_values(file.metadata, fields), None)


def _other_values(ours: Mapping[str, Value], theirs: Mapping[str, Any]) -> Iterator[str]:
    """Metadata that differs in its key, its type, its value, or an array's length."""
    for key in sorted(ours.keys() ^ theirs.keys()):
        yield f"{key} is {'missing' if key in ours else 'not in the file'}"
    for key in ours.keys() & theirs.keys():
        value, field = ours[key], theirs[key]
        if [int(kind) for kind in field.types] != _types(value.kind):
            yield f"{key} is a {'.'.join(kind.name for kind in field.types)}, wanted {value.kind}"
        elif value.kind.startswith("["):
            if len(field.data) != len(value.data):
                yield f"{key} has {len(field.data)} entries, wanted {len(value.data)}"
        elif not _same(field.contents(), value.data):
            yield f"{key} is {field.contents()!r:.60}, wanted {value.data!r:.60}"


def _types(kind: str) -> list[int]:
    """The numbers of a kind's value types in a file, as gguf-py lists them."""
    one = kind.strip("[]")
    number = STRING if one == "str" else SCALARS[one][0]
    return [ARRAY, number] if kind.startswith("[") else [number]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


def _as_llama(path: Path) -> Check:
    name = f"llama.cpp {PINNED}"
    try:
        probe(path, ModelOptions(gpu_layers=0), ContextOptions(n_ctx=_TOKENS, n_outputs=1))
    except EngineError as error:
        return Check(name, False, str(error))
    return Check(name, True, "its loader takes the architecture, the vocabulary and every tensor")


def _beside(path: Path, parts: GGUFParts) -> Iterator[Check]:
    """What Ollama and LM Studio show or need; neither was run."""
    metadata = parts.metadata
    if not metadata.get("tokenizer.chat_template"):
        yield Check("chat template", None, f"none in the file: {_TEMPLATE}")
    for key, use in (("general.name", "the name"), ("general.file_type", "the quantization")):
        if key not in metadata:
            yield Check(key, None, f"is not there: programs show {use} by it")
    if "general.quantization_version" not in metadata:
        yield Check("general.quantization_version", None, "is not there, though GGUF asks for it")
    if len(part_paths(path)) > 1:
        yield Check("parts", None, f"{_SPLIT}; llama.cpp and LM Studio load the first part")
    if path.suffix != ".gguf":
        yield Check("name", None, f"{path.name!r:.80} does not end in .gguf, which LM Studio needs")
