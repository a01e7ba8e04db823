"""What is in a model, from its headers alone: for people, and as JSON with keys that stay.

A checkpoint and a GGUF are described by one function: both have metadata in GGUF's keys, and
tensors with a name, a shape and a type.

The JSON (`Inspection.to_dict`); sizes are bytes, and what is not known is null:

    source        {kind: "checkpoint" | "gguf", files, parts, missing_parts}
    architecture, family, name, file_type
    weights, active_weights, size, bpw
    shape         {blocks, nextn_blocks, hidden, context, experts, experts_used, experts_shared,
                   dense_blocks}
    parts         [{role, tensors, weights, active, size, bpw, types: {type: {tensors, size}},
                    rows: [{columns, tensors, blocks}]}], the largest first
    embedding     "tied" | "separate" | null: see `Inspection.embedding`
    tokenizer     {model, pre, size, special: {name: {id, text}}, ends: [{id, text}], adds_bos}
    templates     [{name, size, tools, thinking}]
    cache         see `gemcut.kv_summary`
    lattice       {role: share of the sampled groups of 32 weights on a Q4_0 lattice}
    plan          {request, solver, predicted} of the plan that the file was made by
    imatrix       {file, dataset, entries, chunks} of the importance it was made with
    stacks        [{name, role, experts, types: {type: experts}, size, bpw}] of stacks whose experts
                  have types of their own; empty in a stock file
    notes         [text]
    tensors       [{name, shape, type, role, weights, size}], only if asked for
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gemcut import ggml
from gemcut.gguf_experts import Stack
from gemcut.gguf_file import TensorInfo, Value
from gemcut.kv_layout import kv_layout
from gemcut.kv_summary import CacheSummary, summary
from gemcut.provenance import Imatrix, Made, imatrix, made
from gemcut.roles import role_of
from gemcut.vocabulary import Template, Vocabulary, templates, vocabulary

_BLOCK = re.compile(r"blk\.(\d{1,9})\.")
_LOOKUPS = ("embedding", "per_layer_embedding")  # of which a token reads one row
_UNSPLIT = ("norm", "router", "other")  # whose row widths decide nothing: they are never cut


@dataclass(frozen=True)
class Origin:
    """Where a model comes from; `missing` counts a split GGUF's parts that are not there."""

    kind: str  # "checkpoint" or "gguf"
    parts: int = 1
    missing_parts: int = 0


@dataclass(frozen=True)
class Shape:
    """A model's own numbers, 0 where it has none. `context` is in tokens."""

    blocks: int
    nextn_blocks: int  # of `blocks`, the last ones, which only draft tokens
    hidden: int
    context: int
    experts: int
    experts_used: int  # of each token, in the block that uses most
    experts_shared: int
    dense_blocks: int  # leading blocks without experts


@dataclass
class Part:
    """All tensors of one role; `active` weights are those that one token uses."""

    role: str
    tensors: int = 0
    weights: int = 0
    active: int = 0
    size: int = 0  # bytes
    types: dict[str, dict[str, int]] = field(default_factory=dict)  # -> {tensors, size}
    rows: dict[int, int] = field(default_factory=dict)  # columns -> tensors

    def add(self, info: TensorInfo, active: int) -> None:
        """Count one tensor."""
        self.tensors += 1
        self.weights += info.weights
        self.active += active
        self.size += info.nbytes
        kind = self.types.setdefault(info.type.name, {"tensors": 0, "size": 0})
        kind["tensors"] += 1
        kind["size"] += info.nbytes
        if len(info.shape) > 1 and self.role not in _UNSPLIT:
            self.rows[info.shape[-1]] = self.rows.get(info.shape[-1], 0) + 1

    @property
    def bpw(self) -> float:
        """Bits per weight."""
        return 8 * self.size / self.weights

    def to_dict(self) -> dict[str, Any]:
        """The part as JSON knows it."""
        rows = [
            {"columns": columns, "tensors": count, "blocks": block_sizes(columns)}
            for columns, count in sorted(self.rows.items())
        ]
        return asdict(self) | {"rows": rows, "bpw": self.bpw}


@dataclass(frozen=True)
class Experts:
    """A stack whose experts are single tensors, in types of their own."""

    name: str
    role: str
    experts: int
    types: Mapping[str, int]  # -> experts, the largest type first
    size: int  # bytes
    bpw: float


@dataclass(frozen=True)
class Inspection:
    """What is in a model."""

    origin: Origin
    architecture: str
    name: str | None
    file_type: int | None  # llama.cpp's number of a mixture
    shape: Shape
    parts: tuple[Part, ...]
    embedding: str | None  # "tied": it is the output, too, and counts as active; "separate"
    tokenizer: Vocabulary | None
    templates: tuple[Template, ...]
    cache: CacheSummary | None
    plan: Made | None
    imatrix: Imatrix | None
    tensors: tuple[tuple[str, TensorInfo], ...] = field(default=(), repr=False)  # (role, tensor)
    family: str | None = None  # gemcut's, that converts it
    lattice: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stacks: tuple[Experts, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights of all tensors."""
        return sum(part.weights for part in self.parts)

    @property
    def active(self) -> int:
        """Number of weights that one token uses: of the routed experts its share, of all else
        everything, but for blocks that only draft and an embedding that is not the output."""
        return sum(part.active for part in self.parts)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(part.size for part in self.parts)

    @property
    def bpw(self) -> float:
        """Bits per weight over all tensors."""
        return 8 * self.size / max(self.weights, 1)  # a file may hold a vocabulary alone

    def to_dict(self, tensors: bool = False) -> dict[str, Any]:
        """The inspection as JSON knows it, with or without the list of all tensors."""
        document = asdict(replace(self, tensors=(), parts=())) | {
            "source": asdict(self.origin),
            "weights": self.weights,
            "active_weights": self.active,
            "size": self.size,
            "bpw": self.bpw,
            "parts": [part.to_dict() for part in self.parts],
            "cache": self.cache and self.cache.to_dict(),
        }
        del document["origin"], document["tensors"]
        if tensors:
            document["tensors"] = [_listed(role, info) for role, info in self.tensors]
        return document


def inspect(
    origin: Origin,
    metadata: Mapping[str, Value],
    tensors: Iterable[TensorInfo],
    notes: Sequence[str] = (),
    stacks: Iterable[Stack] = (),
) -> Inspection:
    """Describe a model.

    Args:
        metadata: by GGUF keys.
        stacks: those among the tensors whose experts have types of their own.

    Raises:
        GGUFError: the metadata is not what it should be.
    """
    found = tuple((role_of(info.name).name, info) for info in tensors)
    architecture = str(_get(metadata, "general.architecture") or "unknown")
    shape = _shape(architecture, metadata)
    tied = all(info.name != "output.weight" for _, info in found)
    parts: dict[str, Part] = {}
    for role, info in found:
        active = 0 if _drafts(info, shape) else _active(role, info, shape, tied)
        parts.setdefault(role, Part(role)).add(info, active)
    layout = kv_layout(architecture, metadata) if found else None
    name, file_type = (_get(metadata, f"general.{key}") for key in ("name", "file_type"))
    return Inspection(
        origin,
        architecture,
        None if name is None else str(name),
        file_type if isinstance(file_type, int) else None,
        shape,
        tuple(sorted(parts.values(), key=lambda part: -part.size)),
        ("tied" if tied else "separate") if "embedding" in parts else None,
        vocabulary(metadata),
        templates(metadata),
        None if layout is None else summary(layout, shape.context),
        made(metadata),
        imatrix(metadata),
        found,
        notes=tuple(notes),
        stacks=tuple(map(_experts, stacks)),
    )


def _experts(stack: Stack) -> Experts:
    counts = Counter(sorted(stack.types, key=lambda kind: (-kind.bpw, kind.name)))
    types = {kind.name: count for kind, count in counts.items()}
    bpw = 8 * stack.nbytes / stack.weights
    role, experts = role_of(stack.name).name, len(stack.experts)
    return Experts(stack.name, role, experts, types, stack.nbytes, bpw)


def block_sizes(columns: int) -> list[int]:
    """The block sizes of ggml's quantized types that divide rows of this length."""
    sizes = {kind.block for kind in ggml.types().values() if kind.quantized}
    return sorted(size for size in sizes if columns % size == 0)


def _active(role: str, info: TensorInfo, shape: Shape, tied: bool) -> int:
    if role.startswith("experts") and shape.experts:
        return info.weights * shape.experts_used // shape.experts
    if role in _LOOKUPS and not (role == "embedding" and tied):
        return 0
    return info.weights


def _drafts(info: TensorInfo, shape: Shape) -> bool:
    match = _BLOCK.match(info.name)
    return match is not None and int(match[1]) >= shape.blocks - shape.nextn_blocks


def _shape(architecture: str, metadata: Mapping[str, Value]) -> Shape:
    def number(key: str) -> int:
        data = _get(metadata, f"{architecture}.{key}")
        data = max(data, default=0) if isinstance(data, list) else data
        return max(data, 0) if isinstance(data, int) else 0

    return Shape(
        blocks=number("block_count"),
        nextn_blocks=number("nextn_predict_layers"),
        hidden=number("embedding_length"),
        context=number("context_length"),
        experts=number("expert_count"),
        experts_used=number("expert_used_count"),
        experts_shared=number("expert_shared_count"),
        dense_blocks=number("leading_dense_block_count"),
    )


def _get(metadata: Mapping[str, Value], key: str) -> Any:
    value = metadata.get(key)
    return None if value is None else value.data


def _listed(role: str, info: TensorInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "shape": list(info.shape),
        "type": info.type.name,
        "role": role,
        "weights": info.weights,
        "size": info.nbytes,
    }
