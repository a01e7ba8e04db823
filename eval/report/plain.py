"""Dataclasses as plain data and back: their fields are the format, and their types the check.

Left out is what is no number or word: arrays, which lie in a file of their own, and paths, which
are nobody else's. What is read gets an empty one in their place.
"""

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from gemcut.artefact import string
from gemcut.eval.texts.chunks import Chunk
from gemcut.eval.texts.text import Text
from gemcut.score import Scores

T = TypeVar("T")

_MOST = 1 << 20  # entries of a list: more than any model has tensors
_ELSEWHERE = (np.ndarray, Chunk, Path, Scores)
_SAID = frozenset({"content", "messages"})  # of a text: its digest is enough


def to_plain(instance: Any) -> dict[str, Any]:
    """A dataclass as json.dumps takes it; a number that is none becomes a string, as "nan"."""
    return {name: _plain(getattr(instance, name)) for name in _kept(instance.__class__)}


def from_plain(kind: type[T], raw: Any, what: str) -> T:
    """A dataclass out of what `to_plain` made of one.

    Raises:
        TypeError, ValueError: it is something else; the message says where.
    """
    found: T = _read(kind, raw, what)
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_plain(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _read(kind: Any, raw: Any, what: str) -> Any:
    if is_dataclass(kind):
        return _read_object(kind, raw, what)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if raw is None else _read(args[0], raw, what)
    if origin is tuple:
        return _read_sequence(args, raw, what)
    if origin is Mapping:
        if not isinstance(raw, dict) or len(raw) > _MOST:
            raise TypeError(f"{what} is {raw!r:.40}, wanted names with values")
        return {args[0](key): _read(args[1], each, f"{what}: {key}") for key, each in raw.items()}
    return _READERS[kind](raw, what)


def _read_object(kind: Any, raw: Any, what: str) -> Any:
    hints, kept = _hints(kind), _kept(kind)
    if not isinstance(raw, dict) or not raw.keys() <= set(kept):
        raise TypeError(f"{what} is {raw!r:.60}, wanted {', '.join(kept)}")
    values = {n: _read(hints[n], raw[n], f"{what}: {n}") for n in kept if n in raw}
    for field in fields(kind):
        if field.name in values or _has_default(field):
            continue
        if field.name in kept:
            raise TypeError(f"{what}: {field.name!r} is missing")
        values[field.name] = _EMPTY[field.name]()
    return kind(**values)


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _read_sequence(args: tuple[Any, ...], raw: Any, what: str) -> tuple[Any, ...]:
    repeated = args[-1] is Ellipsis
    if not isinstance(raw, list) or len(raw) > _MOST or not repeated and len(raw) != len(args):
        raise TypeError(f"{what} is {raw!r:.40}, wanted a list")
    kinds = args[:1] * len(raw) if repeated else args
    return tuple(
        _read(kind, each, f"{what} {i}")
        for i, (kind, each) in enumerate(zip(kinds, raw, strict=True))
    )


def _number(raw: Any, what: str) -> float:
    if raw in ("inf", "-inf", "nan"):
        return float(raw)
    if type(raw) not in (int, float) or not abs(raw) < 1e300:
        raise TypeError(f"{what} is {raw!r:.40}, wanted a number")
    return float(raw)


def _integer(raw: Any, what: str) -> int:
    if type(raw) is not int or not abs(raw) < 1 << 62:
        raise TypeError(f"{what} is {raw!r:.40}, wanted a whole number")
    return raw


def _truth(raw: Any, what: str) -> bool:
    if type(raw) is not bool:
        raise TypeError(f"{what} is {raw!r:.40}, wanted true or false")
    return raw


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _kept(kind: Any) -> tuple[str, ...]:
    """Names of the fields that are numbers or words, or made of them."""
    said = _SAID if kind is Text else frozenset()
    return tuple(f for f, hint in _hints(kind).items() if f not in said and not _elsewhere(hint))


def _elsewhere(hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind in _ELSEWHERE:
        return True
    if named := getattr(kind, "__value__", None):  # an alias, as NumPy's NDArray is from 2.5 on
        return _elsewhere(named)
    return any(map(_elsewhere, get_args(hint)))


_READERS = {float: _number, int: _integer, bool: _truth, str: string}
_EMPTY: Mapping[str, Callable[[], Any]] = {
    "path": Path,
    "content": str,
    "correct": lambda: np.zeros(0, np.bool_),
    "chosen": lambda: np.zeros(0, np.int32),
}
