"""What llama.cpp ends the process over, or reads beyond its arrays for, is refused before it looks.

Its loader raises errors for much that is wrong with a file, and asserts the rest: an assertion that
does not hold ends the process. What it asserts of any architecture is looked at here first, in the
same order and with the limits of the version that is pinned (`src/llama-model.cpp`, load_hparams;
`src/llama-vocab.cpp`). The header itself is checked where it is read (`gguf_file`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from gemcut.errors import EngineError, GGUFError
from gemcut.gguf_file import TensorInfo, Value, state_of
from gemcut.gguf_parts import GGUFParts, part_paths

_MOST_BLOCKS, _MOST_EXPERTS = 512, 1024  # LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS
_MOST = (1 << 31) - 1  # numbers are u32, and multiplied as int
_MOST_WINDOW = 1 << 24  # tokens; room for twice as many numbers is taken with every step
_SCALINGS = ("none", "linear", "yarn", "longrope")
_SHARING, _LEAST_OWN = "gemma4", 2  # blocks with a cache of their own, where others share it
_ENDLESS = "gemma4"  # which never ends to turn vectors of no numbers; others may have none to turn
_DENSE = ("hunyuan-dense", "hunyuan_vl")  # of one expert, which llama.cpp forgets
_TOKENS = "tokenizer.ggml.tokens"
# Types without a `vec_dot` (`ggml-cpu.c`), and tables of numbers, which are looked up alone.
_NO_PRODUCTS = frozenset("i8 i16 i32 i64 f64".split())
_TABLE = re.compile(r"(?:^|[._])(?:gate_tid2eid|d2t|t2d)(?:[._]|$)")

States = tuple[tuple[int, ...] | None, ...]


def check_loadable(path: Path, parts: GGUFParts | None = None) -> None:
    """Refuse a file that llama.cpp would not survive; of a split one all parts.

    A file is looked at once, until it changes.

    Args:
        parts: the same file, where it is open already: its header is not read again.

    Raises:
        EngineError: it is damaged; says how.
    """
    states = states_of(path)
    if parts and states == tuple(file.state for file in parts.files):
        _check_parts(path, parts)
    else:
        _check(path, states)


def states_of(path: Path) -> States:
    """What tells all parts of a file from any other; None of one that is missing."""
    return tuple(map(_state, part_paths(path)))


@lru_cache(maxsize=64)
def _check(path: Path, states: States) -> None:
    try:
        with GGUFParts(path) as parts:
            _check_parts(path, parts)
    except GGUFError as error:
        raise EngineError(str(error)) from error


def _check_parts(path: Path, parts: GGUFParts) -> None:
    # Single experts are shown to gemcut's own library, which says so itself.
    single = {expert.name for stack in parts.stacks.values() for expert in stack.experts}
    shown = (tensor for tensor in parts.tensors if tensor.name not in single)
    faults = chain(faults_of(parts.metadata), matrices_without_products(shown))
    if fault := next(faults, None):
        raise EngineError(f"{path}: damaged, or not for this llama.cpp: {fault}")


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        return state_of(path)
    except OSError:  # whoever loads it says so
        return None


def matrices_without_products(tensors: Iterable[TensorInfo]) -> Iterator[str]:
    """Matrices in types that ggml's CPU has no product for: it would call what is not there."""
    for tensor in tensors:
        if tensor.rows > 1 and tensor.type.name in _NO_PRODUCTS and not _TABLE.search(tensor.name):
            yield f"{tensor.name} is of the type {tensor.type.name}, which is not multiplied with"


def faults_of(metadata: Mapping[str, Value]) -> Iterator[str]:
    """What is wrong with a model's metadata, in words; nothing of one that holds no model."""
    if (tokens := metadata.get(_TOKENS)) and tokens.kind == "[str]":
        named = [token for token in tokens.data if token]  # llama.cpp numbers what has no name
        if len(set(named)) < len(named):
            yield f"{_TOKENS} has a token twice"
    architecture = metadata.get("general.architecture")
    numbers = _Numbers(metadata, str(architecture.data) if architecture else "")
    if numbers.has("block_count"):
        yield from numbers.faults()


class _Numbers:
    """The numbers of an architecture."""

    def __init__(self, metadata: Mapping[str, Value], architecture: str) -> None:
        self._metadata, self._prefix = metadata, architecture

    def has(self, key: str) -> bool:
        """Whether there is such a key."""
        return f"{self._prefix}.{key}" in self._metadata

    def faults(self) -> Iterator[str]:
        """Every number that is out of its range."""
        blocks = self._first("block_count")
        yield from self._ranged("block_count", 1, _MOST_BLOCKS)
        yield from self._ranged("nextn_predict_layers", 0, blocks)
        yield from self._ranged("context_length", 0, _MOST)
        yield from self._ranged("attention.sliding_window", 0, _MOST_WINDOW)
        yield from self._ranged("embedding_length", 1, _MOST)
        yield from self._experts()
        yield from self._heads()
        yield from self._sharing(blocks)
        scaling = self._data("rope.scaling.type")
        if scaling is not None and scaling not in _SCALINGS:
            yield f"{self._key('rope.scaling.type')} is {scaling!r:.40}, wanted one of {_SCALINGS}"

    def _experts(self) -> Iterator[str]:
        experts, used = self._first("expert_count"), self._whole("expert_used_count")
        groups = self._first("expert_group_count")
        if self._prefix in _DENSE and experts <= 1:
            return
        yield from self._ranged("expert_count", 0, _MOST_EXPERTS)
        yield from self._ranged("expert_used_count", 0, experts)
        if experts > 0 and not any(used):
            yield f"{self._key('expert_used_count')} is 0 of {experts} experts"
        yield from self._ranged("expert_group_count", 0, max(0, experts - 1))
        if groups > 1 and experts % groups:
            yield f"{experts} experts in {groups} groups"
        if groups > 1:
            yield from self._ranged("expert_group_used_count", 1, groups - 1)
            if not self.has("expert_group_used_count"):
                yield f"{self._key('expert_group_used_count')} is missing"

    def _heads(self) -> Iterator[str]:
        heads, shared = self._whole("attention.head_count"), self._whole("attention.head_count_kv")
        yield from self._ranged("attention.head_count", 0, _MOST)
        yield from self._ranged("attention.head_count_kv", 0, _MOST)
        width = max(len(heads), len(shared))
        pairs = zip(_repeated(heads, width), _repeated(shared, width), strict=False)
        if any(mine % each for mine, each in pairs if each > 0):
            yield f"{self._key('attention.head_count')} {heads} over {shared} of keys and values"
        for key in ("rope.dimension_count", "rope.dimension_count_swa"):
            yield from self._ranged(key, 2 if self._prefix == _ENDLESS else 0, _MOST)
            if any(number % 2 for number in self._whole(key)):
                yield f"{self._key(key)} is {self._data(key)}, wanted an even number"

    def _sharing(self, blocks: int) -> Iterator[str]:
        """Other architectures have the number, too, and may share all of another model's."""
        shared = self._first("attention.shared_kv_layers")
        if self._prefix == _SHARING and blocks - shared < _LEAST_OWN:
            yield (
                f"{self._key('attention.shared_kv_layers')} is {shared} of {blocks} blocks, wanted "
                f"{_LEAST_OWN} with keys and values of their own"
            )

    def _ranged(self, key: str, least: int, most: int) -> Iterator[str]:
        """A fault if there is such a number, or one of a list, beyond these limits."""
        for number in self._whole(key):
            if not least <= number <= most:
                yield f"{self._key(key)} is {number}, wanted {least} to {most}"
                return

    def _first(self, key: str) -> int:
        return next(iter(self._whole(key)), 0)

    def _whole(self, key: str) -> list[int]:
        """A number, or a list of them; what is neither llama.cpp refuses itself."""
        data = self._data(key)
        found = data if isinstance(data, list) else [data]
        return [each for each in found if type(each) is int]

    def _data(self, key: str) -> Any:
        value = self._metadata.get(self._key(key))
        return None if value is None else value.data

    def _key(self, key: str) -> str:
        return f"{self._prefix}.{key}"


def _repeated(numbers: list[int], count: int) -> list[int]:
    return numbers * count if len(numbers) == 1 else numbers
