"""What `torch.save` pickles of a dict of tensors, read without unpickling.

A pickle is a program, and Python's interpreter of it imports and calls whatever the file names. The
one here knows the instructions that torch.save writes and, instead of calling, compares names with
the few that tensors are made of. See the documentation of pickletools and torch.serialization.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "UntypedStorage": "",  # the tensor says it
}


@dataclass(frozen=True)
class Name:
    """What a pickle calls "global": a name in a module. Nothing is imported."""

    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    """A block of numbers that is kept outside of the pickle."""

    key: str
    dtype: str  # as safetensors spells it, or ""


@dataclass(frozen=True)
class StridedTensor:
    """A part of a storage: offset and strides count elements. As the file says: not checked."""

    storage: Storage
    dtype: str
    offset: Any
    shape: Any
    strides: Any


def tensors(program: bytes) -> dict[str, StridedTensor]:
    """The tensors by name that a pickle builds.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: it is damaged or builds something else.
    """
    found = _Machine().run(program)
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}, wanted tensors by name")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, StridedTensor):
            raise ValueError(
                f"{name!r} is a {type(value).__name__}: wanted tensors by name, nothing nested"
            )
    return found


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: bytes) -> object:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                break
            if opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name])
            elif opcode.name in _LITERALS:
                self.stack.append(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            else:
                raise ValueError(f"instruction {opcode.name}, which no table of tensors has")
        (found,) = self.stack
        return found

    def name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Name(module, name))

    def put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def pack(self, count: int | None) -> None:
        start = self.marks.pop() if count is None else len(self.stack) - count
        self.stack.append(tuple(self.since(start)))

    def empty_dict(self, _: None) -> None:
        self.stack.append({})

    def empty_list(self, _: None) -> None:
        self.stack.append([])

    def set_one(self, _: None) -> None:
        self.set_all(self.since(len(self.stack) - 2))

    def set_marked(self, _: None) -> None:
        self.set_all(self.since(self.marks.pop()))

    def set_all(self, items: list[Any]) -> None:
        # Other keys may take forever to be hashed: tuples of tuples of tuples, each the same twice.
        if not all(isinstance(key, str | int) for key in items[::2]):
            raise ValueError("a key that is no name")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def build(self, _: None) -> None:
        """Attributes of an object: a state dict's versions of modules, which say nothing here."""
        self.stack.pop()

    def refer(self, _: None) -> None:
        """A reference to what is outside of the pickle."""
        kind, name, key, _, _ = self.stack.pop()
        if kind != "storage" or not isinstance(key, str):
            raise ValueError("a reference to something else than a storage")
        if name.module not in ("torch", "torch.storage") or name.name not in STORAGES:
            raise ValueError(f"storage of kind {name.module}.{name.name}")
        self.stack.append(Storage(key, STORAGES[name.name]))

    def reduce(self, _: None) -> None:
        """What calls a function elsewhere."""
        arguments, name = self.stack.pop(), self.stack.pop()
        make = _CALLS.get((name.module, name.name))
        if make is None:
            raise ValueError(f"a call of {name.module}.{name.name}, which no table of tensors has")
        self.stack.append(make(*arguments))

    def since(self, start: int) -> list[Any]:
        if start < 0:
            raise ValueError("too few values")
        found = self.stack[start:]
        del self.stack[start:]
        return found


def _tensor(
    storage: Storage,
    offset: int,
    shape: object,
    strides: object,
    _: bool,
    hooks: object,
    *more: Any,
) -> StridedTensor:
    dtype, metadata = storage.dtype, more
    if not dtype:  # version 3 of torch's function names it
        dtype, metadata = DTYPES[more[0].name], more[1:]
    if any(metadata):
        raise ValueError("a tensor that is negated or conjugated when it is read")
    return StridedTensor(storage, dtype, offset, shape, strides)


# What stands in for the functions that a table of tensors calls.
_CALLS: Mapping[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): lambda: {},
    ("torch._utils", "_rebuild_parameter"): lambda data, trained, hooks: data,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset({"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"})
_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "GLOBAL": _Machine.name,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "EMPTY_DICT": _Machine.empty_dict,
    "EMPTY_LIST": _Machine.empty_list,
    "MARK": _Machine.mark,
    "TUPLE": _Machine.pack,
    "TUPLE1": lambda machine, _: machine.pack(1),
    "TUPLE2": lambda machine, _: machine.pack(2),
    "TUPLE3": lambda machine, _: machine.pack(3),
    "SETITEM": _Machine.set_one,
    "SETITEMS": _Machine.set_marked,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.refer,
    "REDUCE": _Machine.reduce,
}
