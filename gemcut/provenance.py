"""How a GGUF was made, as its own metadata tells: the plan, the importance matrix."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemcut.gguf_file import Value
from gemcut.plan import METADATA_KEY

_DEEPEST = 16  # levels; a plan's answers have four


@dataclass(frozen=True)
class Made:
    """A plan's answers: what was asked for, how types were chosen, what was predicted."""

    request: Any
    solver: Any
    predicted: Any = None


@dataclass(frozen=True)
class Imatrix:
    """The importance matrix that a file was made with, in llama.cpp's words."""

    file: str | None
    dataset: str | None
    entries: int | None
    chunks: int | None


def made(metadata: Mapping[str, Value]) -> Made | None:
    """What the plan in a file says of itself; None without one that can be read.

    A plan of a newer gemcut is good enough here, unlike where it is to be applied.
    """
    value = metadata.get(METADATA_KEY)
    try:
        document = json.loads(value.data) if value else None
    except (ValueError, TypeError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    answers = [document.get(name) for name in ("request", "solver", "predicted")]
    return Made(*answers) if _is_shallow(answers, _DEEPEST) else None


def _is_shallow(document: Any, most: int) -> bool:
    """Whether JSON has no more levels than that: who shows it goes down, one by one."""
    if isinstance(document, dict):
        document = [*document.values()]
    if not isinstance(document, list):
        return True
    return most > 0 and all(_is_shallow(each, most - 1) for each in document)


def imatrix(metadata: Mapping[str, Value]) -> Imatrix | None:
    """What `quantize.imatrix.*` says; None where nothing does."""
    keys = ("file", "dataset", "entries_count", "chunks_count")
    values = [metadata.get(f"quantize.imatrix.{key}") for key in keys]
    if not any(values):
        return None
    file, dataset, entries, chunks = (value.data if value else None for value in values)
    return Imatrix(
        None if file is None else str(file),
        None if dataset is None else str(dataset),
        entries if isinstance(entries, int) else None,
        chunks if isinstance(chunks, int) else None,
    )
