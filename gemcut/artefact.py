"""Artefacts as files: JSON that is read strictly and within bounds, and written whole.

The readers of values take the value and what it is, and raise TypeError or ValueError, which say
what they found: an artefact turns them into one error of its own.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gemcut.errors import GemcutError
from gemcut.outputs import completed

T = TypeVar("T")
Reader = Callable[[Any, str], T]  # of a value, and what it is

MAX_SIZE = 1 << 28  # bytes: the artefacts of the largest models take a few of 2^20
_PIECE = 1 << 20
_LARGEST = 1e60  # of numbers in files: products of their squares are numbers, too


def read_bytes(path: Path, most: int) -> bytes:
    """A file's bytes, up to one more than `most`, which says that it is longer.

    Piece by piece: a read of so many at once takes memory for all, however short the file is.

    Raises:
        OSError: it cannot be read.
    """
    pieces, left = [], most + 1
    with open(path, "rb") as file:
        while left and (piece := file.read(min(_PIECE, left))):
            pieces.append(piece)
            left -= len(piece)
    return b"".join(pieces)


def read_text(path: Path, what: str, error: type[GemcutError]) -> str:
    """The text of an artefact's file.

    Args:
        what: what it should be, as in "a plan".
        error: raised if the file cannot be read, is too large, or holds no text.
    """
    try:
        raw = read_bytes(path, MAX_SIZE)
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from problem
    if len(raw) > MAX_SIZE:
        raise error(f"{path}: not {what}: longer than {MAX_SIZE} bytes")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not {what}: {problem}") from problem


def write_text(path: Path, text: str) -> None:
    """Write a file, complete or not at all. Raises OutputError."""
    with completed(Path(path)) as partial:
        partial.write_text(text, encoding="utf-8")


def parse(text: str) -> Any:
    """JSON in which no name comes twice and every number is one. Raises ValueError."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def fields(raw: Any, what: str, readers: Mapping[str, Reader[Any]]) -> dict[str, Any]:
    """Exactly these fields of an object, each read by its reader."""
    if not isinstance(raw, dict):
        raise TypeError(f"{what} is {raw!r:.40}, wanted {', '.join(readers)}")
    if wrong := raw.keys() ^ readers.keys():
        raise TypeError(
            f"{what}: {min(wrong)!r:.40} is {'no field' if min(wrong) in raw else 'missing'}"
        )
    return {name: reader(raw[name], f"{what}: {name}") for name, reader in readers.items()}


def each(reader: Reader[T], raw: Any, what: str) -> dict[str, T]:
    """An object of any names, whose values are read by one reader."""
    if not isinstance(raw, dict):
        raise TypeError(f"{what} is {raw!r:.40}, wanted names with values")
    return {name: reader(value, f"{what}: {name}") for name, value in raw.items()}


def sequence(raw: Any, what: str, length: int | None = None) -> list[Any]:
    """A list, of some length."""
    if not isinstance(raw, list) or len(raw) != (len(raw) if length is None else length):
        count = "" if length is None else f" of {length}"
        raise TypeError(f"{what} is {raw!r:.40}, wanted a list{count}")
    return raw


def number(raw: Any, what: str) -> float:
    """A finite number."""
    if type(raw) not in (int, float) or not abs(raw) < _LARGEST:
        raise TypeError(f"{what} is {raw!r:.40}, wanted a number")
    return float(raw)


def amount(raw: Any, what: str) -> float:
    """A finite number that is not negative."""
    if (found := number(raw, what)) < 0:
        raise ValueError(f"{what} is {found}, wanted 0 or more")
    return found


def share(raw: Any, what: str) -> float:
    """A number from 0 to 1."""
    if (found := amount(raw, what)) > 1:
        raise ValueError(f"{what} is {found}, wanted 0 to 1")
    return found


def string(raw: Any, what: str) -> str:
    """A string."""
    if not isinstance(raw, str):
        raise TypeError(f"{what} is {raw!r:.40}, wanted a string")
    return raw


def optional_string(raw: Any, what: str) -> str | None:
    """A string or null."""
    return None if raw is None else string(raw, what)
