"""GGUF files with a type for every single expert: their names, and what marks such a file.

Stock GGUF keeps the experts of a block's projection in one tensor of one type, a stack. Here each
expert is a tensor of its own (`blk.3.ffn_down_exps.17.weight`), and those of one stack may be of
different types. The file says so in its metadata, before anything else but the architecture, whose
name is another than the stock one: a loader that does not know such files refuses it at once
instead of missing tensors, or worse. All other keys keep the stock architecture's name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from gemcut import ggml
from gemcut.errors import GGUFError
from gemcut.gguf_header import TensorInfo, Value

VERSION = 1
VERSION_KEY = "gemcut.experts.version"
ARCHITECTURE_KEY = "gemcut.experts.architecture"  # the stock one
MARK = "-with-types-per-expert"
_ARCHITECTURE = "general.architecture"
_EXPERT = re.compile(r"(blk\.[0-9]{1,9}\.ffn_\w+_exps)\.(0|[1-9][0-9]{0,5})\.weight", re.ASCII)


@dataclass(frozen=True)
class Stack:
    """The experts of one projection, in order: what stock files hold as one tensor."""

    name: str  # of that tensor: blk.3.ffn_down_exps.weight
    experts: tuple[TensorInfo, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major, as that tensor's: (experts, rows, columns)."""
        return (len(self.experts), *self.experts[0].shape)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all experts, without padding between them."""
        return sum(info.nbytes for info in self.experts)

    @property
    def types(self) -> tuple[ggml.Type, ...]:
        """The type of every expert."""
        return tuple(info.type for info in self.experts)


def expert_name(stack: str, number: int) -> str:
    """What an expert's tensor is called: that of the stack, with its number before the end."""
    return f"{stack.removesuffix('.weight')}.{number}.weight"


def stack_of(name: str) -> tuple[str, int] | None:
    """The stack that a tensor is one expert of, and the expert's number; None: it is none."""
    match = _EXPERT.fullmatch(name)
    return (f"{match[1]}.weight", int(match[2])) if match else None


def is_stack(name: str) -> bool:
    """Whether a tensor of this name holds experts that may be tensors of their own."""
    return stack_of(expert_name(name, 0)) is not None


def is_marked(metadata: Mapping[str, Value]) -> bool:
    """Whether a file with this metadata has types per expert."""
    return VERSION_KEY in metadata


def marked(metadata: Mapping[str, Value]) -> dict[str, Value]:
    """A stock file's metadata as that of a file with types per expert; the marks come first."""
    stock = str(metadata[_ARCHITECTURE].data)
    head = {
        _ARCHITECTURE: Value("str", stock + MARK),
        ARCHITECTURE_KEY: Value("str", stock),
        VERSION_KEY: Value("u32", VERSION),
    }
    return head | {key: value for key, value in metadata.items() if key not in head}


def restored(metadata: Mapping[str, Value], where: str) -> dict[str, Value]:
    """The inverse of `marked`; metadata of a stock file is given back as it is.

    Raises:
        GGUFError: it is of another version, or its marks contradict each other.
    """
    if not is_marked(metadata):
        return dict(metadata)
    if (version := metadata[VERSION_KEY]) != Value("u32", VERSION):
        raise GGUFError(
            f"{where}: types per expert of version {version.data!r:.20}, wanted {VERSION}: a newer "
            "gemcut may read it; else cut it anew"
        )
    stock, named = metadata.get(ARCHITECTURE_KEY), metadata.get(_ARCHITECTURE)
    if stock is None or stock.kind != "str" or named != Value("str", stock.data + MARK):
        wrong = [None if each is None else each.data for each in (named, stock)]
        raise GGUFError(
            f"{where}: damaged: {_ARCHITECTURE} {wrong[0]!r:.60} with {ARCHITECTURE_KEY} "
            f"{wrong[1]!r:.60}, wanted that name with {MARK!r} behind it"
        )
    marks = (ARCHITECTURE_KEY, VERSION_KEY)
    kept = {key: value for key, value in metadata.items() if key not in marks}
    return {**kept, _ARCHITECTURE: stock}


def expert_count(metadata: Mapping[str, Value]) -> int | None:
    """How many experts every stack has, as a stock file's metadata says; None: it does not."""
    architecture = metadata.get(_ARCHITECTURE)
    value = metadata.get(f"{architecture.data}.expert_count") if architecture else None
    return value.data if value and isinstance(value.data, int) else None


def stacks(tensors: Iterable[TensorInfo], where: str, count: int | None = None) -> dict[str, Stack]:
    """The stacks whose experts are tensors of their own, by the stack's name.

    Args:
        count: of experts that each must have; None: nobody knows.

    Raises:
        GGUFError: experts are missing or too many, those of a stack differ in shape, or a stack is
            there both in one tensor and in several.
    """
    table = {info.name: info for info in tensors}
    found: dict[str, dict[int, TensorInfo]] = {}
    for info in table.values():
        if known := stack_of(info.name):
            found.setdefault(known[0], {})[known[1]] = info
    if both := found.keys() & table.keys():
        raise GGUFError(
            f"{where}: damaged: {min(both)} is there, and so are its experts as single tensors"
        )
    return {name: _stack(name, experts, count, where) for name, experts in found.items()}


def together(
    tensors: Iterable[TensorInfo], stacks: Mapping[str, Stack]
) -> Iterator[TensorInfo | Stack]:
    """The tensors of a file as a stock one has them: a stack stands where its first expert did."""
    for info in tensors:
        known = stack_of(info.name)
        if known is None or known[0] not in stacks:
            yield info
        elif known[1] == 0:
            yield stacks[known[0]]


def _stack(name: str, experts: Mapping[int, TensorInfo], count: int | None, where: str) -> Stack:
    wanted = max(experts) + 1 if count is None else count
    missing = next((number for number in range(wanted) if number not in experts), None)
    if missing is not None:
        raise GGUFError(
            f"{where}: {expert_name(name, missing)} is missing, though expert {max(experts)} "
            "is there: the file is not whole; copy or make it again"
        )
    if len(experts) > wanted:
        raise GGUFError(f"{where}: {expert_name(name, max(experts))}, though experts are {wanted}")
    first = experts[0]
    for number in range(wanted):
        shape = experts[number].shape
        if len(shape) != 2 or shape != first.shape:
            raise GGUFError(
                f"{where}: {experts[number].name} has the shape {shape}, expert 0 {first.shape}; "
                "wanted one shape [rows, columns] for all"
            )
    return Stack(name, tuple(experts[number] for number in range(wanted)))
