"""Which feed-forwards may be wider than they are, and which fused tensors may be written apart.

Units without weights give zeros: zero rows of gate and up, and zero columns of down, change nothing
that a model computes. llama.cpp reads one width for all blocks out of the metadata, or takes it
from another one, so that all tensors of a width have to be padded together. What stands in the
tables is proven by loading such a file (tests/test_reshape.py); the rest is left as it is.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gemcut.convert.model import Model, Tensor
from gemcut.gguf_file import Value

_EXPERTS, _DENSE, _SHARED = "_exps", "", "_shexp"  # behind ffn_gate, ffn_up, ffn_down
_WIDTH = "feed_forward_length"
_EXPERT_WIDTH = "expert_feed_forward_length"
_SHARED_WIDTH = "expert_shared_feed_forward_length"

_Class = tuple[str, tuple[str, ...]]  # the metadata key of a width, and the tensors that have it


def _own(key: str, *kinds: str) -> _Class:
    return key, kinds


_WITH_SHARED = {  # the shared expert's width is a multiple of the others', and has no key
    "experts": _own(_EXPERT_WIDTH, _EXPERTS, _SHARED),
    "dense": _own(_WIDTH, _DENSE),
}
_WITHOUT_OWN = {"experts": _own(_WIDTH, _EXPERTS, _DENSE)}
_APART = {
    "experts": _own(_EXPERT_WIDTH, _EXPERTS),
    "shared": _own(_SHARED_WIDTH, _SHARED),
}
_PADDED: Mapping[str, Mapping[str, _Class]] = {
    "deepseek2": _WITH_SHARED,
    "gemma4": {"experts": _own(_EXPERT_WIDTH, _EXPERTS), "dense": _own(_WIDTH, _DENSE)},
    "glm4moe": _WITH_SHARED,
    "llama": _WITHOUT_OWN,
    "llama4": _WITH_SHARED,
    "olmoe": _WITHOUT_OWN,
    "qwen35moe": _APART,
    "qwen3moe": {"experts": _own(_EXPERT_WIDTH, _EXPERTS)},
    "qwen3next": _APART,
}
_LOADED_APART = frozenset({"deepseek2", "gemma4", "qwen35moe", "qwen3next"})

_FUSED = ".ffn_gate_up_exps."
_NAME = re.compile(r"blk\.\d+\.ffn_(gate_up|gate|up|down)(_exps|_shexp|)\.(.+)")


@dataclass(frozen=True)
class Padding:
    """A width that may grow: the tensors that have it, and the metadata key that says it."""

    width: int  # units, as it is
    tensors: Mapping[str, int]  # by name: how many times the width each has
    key: str

    def padded(self, value: Value, width: int) -> Value:
        """The key's value with another width; a list has one for every block."""
        if isinstance(value.data, list):
            data = [width if each == self.width else each for each in value.data]
            return Value(value.kind, data)
        return Value(value.kind, width)


def paddings(model: Model) -> dict[str, Padding]:
    """The widths of a model that may grow: "experts", "dense" and "shared", where it has them.

    Left out are widths that differ between blocks, tensors that stay in the type they have, and
    whatever has a bias.
    """
    found = {}
    for name, (suffix, kinds) in _PADDED.get(model.architecture, {}).items():
        key = f"{model.architecture}.{suffix}"
        padding = _padding(key, _width(model.metadata.get(key)), _of(kinds, model.tensors))
        if padding is not None:
            found[name] = padding
    return found


def splits(model: Model) -> dict[str, tuple[str, str]]:
    """The fused tensors that may be written as gate and up, and the names that these then have."""
    if model.architecture not in _LOADED_APART:
        return {}
    fused = [tensor.name for tensor in model.tensors if _FUSED in tensor.name]
    return {
        name: (name.replace("gate_up", "gate"), name.replace("gate_up", "up"))
        for name in fused
        if name.endswith(".weight") and not _has_more(name, fused)
    }


def parts(name: str) -> int:
    """How many feed-forward matrices, one below the other, a tensor of this name holds."""
    return 2 if ".ffn_gate_up" in name else 1


def width(tensor: Tensor) -> int:
    """The feed-forward units that a tensor has: down's columns, or the rows of a gate or an up."""
    if ".ffn_down" in tensor.name:
        return tensor.columns
    return tensor.rows // tensor.matrices // parts(tensor.name)


def _of(kinds: Iterable[str], tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, str]]:
    """The tensors of some kinds, each with what is behind the dot: its weight, bias or scale."""
    for tensor in tensors:
        match = _NAME.fullmatch(tensor.name)
        if match and match[2] in kinds:
            yield tensor, match[3]


def _padding(key: str, units: int | None, tensors: Iterable[tuple[Tensor, str]]) -> Padding | None:
    factors = {}
    for tensor, what in tensors:
        if what == "scale" and tensor.columns != units:  # one for every expert
            continue
        if not units or what != "weight" or tensor.kept or width(tensor) % units:
            return None
        factors[tensor.name] = width(tensor) // units
    routed = [count for name, count in factors.items() if _EXPERTS in name]
    if not units or not factors or any(count > 1 for count in routed):
        return None
    return Padding(units, factors, key)


def _width(value: Value | None) -> int | None:
    """The one width that metadata says; a list has zeros for blocks without it."""
    data = None if value is None else value.data
    several = {each for each in data if each} if isinstance(data, list) else {data}
    only = several.pop() if len(several) == 1 else None
    return only if isinstance(only, int) else None


def _has_more(name: str, fused: Iterable[str]) -> bool:
    """Whether the tensor has a bias or a scale, which would have to be divided, too."""
    stem = name.removesuffix("weight")
    return any(other.startswith(stem) and other != name for other in fused)
