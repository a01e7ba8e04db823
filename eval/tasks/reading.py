"""Opening a file of tasks: which format it has is seen by its content, or said."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from gemcut.errors import TextError
from gemcut.eval.tasks.binary import looks_binary, multiple_choice
from gemcut.eval.tasks.formats import hellaswag, jsonl, winogrande
from gemcut.eval.tasks.task import HELLASWAG, JSONL, KINDS, MULTIPLE_CHOICE, WINOGRANDE, Item, Task
from gemcut.eval.texts.text import read_bytes

_MOST_BYTES = 1 << 28
_TEXTS: dict[str, Callable[[str], Iterator[Item]]] = {
    HELLASWAG: hellaswag,
    WINOGRANDE: winogrande,
    JSONL: jsonl,
}


def read_task(given: Path | str) -> Task:
    """Read a file of tasks.

    Args:
        given: its path; "KIND:PATH" where the kind (`KINDS`) is not to be guessed.

    Raises:
        TextError: it cannot be read, is of no known format, damaged, or too large.
    """
    kind, path = _named(str(given))
    data = read_bytes(path, _MOST_BYTES, "task")
    kind = kind or _guessed(data)
    try:
        items = tuple(multiple_choice(data) if kind == MULTIPLE_CHOICE else _read(kind, data))
    except TextError as error:
        raise TextError(f"{path}: not a task of the kind {kind}: {error}") from error
    if not items:
        raise TextError(f"{path}: no items in it")
    return Task(path.name, kind, sha256(data).hexdigest(), items)


def _named(given: str) -> tuple[str, Path]:
    """The kind that is said, or "", and the path."""
    kind, colon, path = given.partition(":")
    return (kind, Path(path)) if colon and kind in KINDS else ("", Path(given))


def _guessed(data: bytes) -> str:
    """The kind that the first lines look like; JSONL if none."""
    if looks_binary(data):
        return MULTIPLE_CHOICE
    first, second = [*data[: 1 << 16].split(b"\n", 2), b"", b""][:2]
    if first.lstrip().startswith(b"{"):
        return JSONL
    if second.strip() in (b"0", b"1", b"2", b"3"):
        return HELLASWAG
    return WINOGRANDE if first.count(b",") > 3 else JSONL


def _read(kind: str, data: bytes) -> Iterator[Item]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        ) from error
    return _TEXTS[kind](text)
