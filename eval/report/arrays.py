"""Numbers per token in a file of numpy's (.npz), read without trusting it.

Of each comparison its chunks (tokens, which are scored, text, cluster, digest) and of each row its
scores; of each task what every file chose. Scores are kept as 32-bit floats, good to 7 digits.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from gemcut.errors import ReportError
from gemcut.eval.comparison import Comparison, Report, Row
from gemcut.eval.tasks.result import TaskResult, TaskRow
from gemcut.eval.texts.chunks import Chunk
from gemcut.score import Divergence, Scores

_MOST = 1 << 32  # bytes of all arrays: ten files on 16 million tokens
_PACKED = (ZIP_STORED, ZIP_DEFLATED)  # as numpy packs arrays; others have errors of their own
# The header of an array as numpy writes it; it reads any literal of Python's.
_MAGIC, _HEADER = b"\x93NUMPY\x01\x00", 1 << 12
_FIELDS = re.compile(
    rb"\{'descr': '([<|]\w\d)', 'fortran_order': False, 'shape': \(([\d, ]{,99})\), \} *\n"
)
_DAMAGED = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zlib.error, BadZipFile)

Arrays = dict[str, NDArray[Any]]


def to_arrays(report: Report) -> Arrays:
    """Everything about tokens and items, by name."""
    found: Arrays = {}
    for i, comparison in enumerate(report.comparisons):
        found |= {f"{i}.{name}": array for name, array in _of_comparison(comparison)}
    for i, task in enumerate(report.tasks):
        for j, row in enumerate(task.rows):
            found[f"task{i}.{j}.correct"] = row.correct.astype(np.bool_)
            found[f"task{i}.{j}.chosen"] = row.chosen.astype("<i4")
    return found


def write_arrays(path: Path, arrays: Arrays) -> None:
    """The file: equal arrays make equal bytes."""
    with open(path, "wb") as file:  # to a path, numpy would add an ending
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # of allow_pickle


def with_arrays(report: Report, path: Path) -> Report:
    """A report that was read without them, and its arrays.

    Raises:
        ReportError: the file is damaged, too large, or of another report.
    """
    try:
        with ZipFile(path) as archive:
            taken = _Taken(archive)
            comparisons = tuple(
                _with_tokens(taken, str(i), each) for i, each in enumerate(report.comparisons)
            )
            tasks = tuple(_with_items(taken, i, task) for i, task in enumerate(report.tasks))
    except _DAMAGED as error:
        reason = error.strerror if isinstance(error, OSError) else str(error) or "too large"
        raise ReportError(f"{path}: not the scores of this report: {reason}") from error
    return replace(report, comparisons=comparisons, tasks=tasks)


def _of_comparison(comparison: Comparison) -> Iterator[tuple[str, NDArray[Any]]]:
    chunks = comparison.chunks
    if chunks:
        yield "tokens", np.concatenate([chunk.tokens for chunk in chunks]).astype("<i4")
        yield "outputs", np.concatenate([chunk.outputs for chunk in chunks])
        yield "lengths", np.array([len(chunk.tokens) for chunk in chunks], "<i4")
        yield "texts", np.array([chunk.text for chunk in chunks], "<i4")
        yield "digests", np.array([bytearray.fromhex(chunk.digest) for chunk in chunks], np.uint8)
    for name in ("clusters", "sizes"):
        if (numbers := getattr(comparison, name)) is not None:
            yield name, numbers.astype("<i8")
    for i, row in enumerate(comparison.rows):
        if row.scores is not None:
            yield from ((f"{i}.{name}", array) for name, array in _of_scores(row.scores))


def _of_scores(scores: Scores) -> Iterator[tuple[str, NDArray[Any]]]:
    yield "nll", scores.nll.astype("<f4")
    yield "correct", scores.correct.astype(np.bool_)
    if (divergence := scores.divergence) is not None:
        for name in ("kld", "reverse", "delta_p"):
            yield name, getattr(divergence, name).astype("<f4")
        yield "same_top", divergence.same_top.astype(np.bool_)


class _Taken:
    """The arrays of an archive, each checked against what it should be before it is read."""

    def __init__(self, archive: ZipFile) -> None:
        self._archive, members = archive, archive.infolist()
        if sum(member.file_size for member in members) > _MOST:
            raise ValueError(f"more than {_MOST} bytes of arrays")
        if any(member.compress_type not in _PACKED for member in members):
            raise ValueError("it is packed in another way than numpy does")
        self._sizes = {member.filename: member.file_size for member in members}

    def has(self, name: str) -> bool:
        """Whether it is there."""
        return f"{name}.npy" in self._sizes

    def take(self, name: str, kind: str, count: int | None = None, width: int = 0) -> NDArray[Any]:
        """An array [count] or, with a width, [count, width]."""
        member = f"{name}.npy"
        if member not in self._sizes:
            raise ValueError(f"{name} is missing")
        with self._archive.open(member) as file:
            shape, dtype = _header(file)
            size = prod(shape) * dtype.itemsize
            wanted = (shape[0] if count is None and shape else count, *([width] if width else []))
            if dtype != np.dtype(kind) or shape != wanted or size > self._sizes[member]:
                raise ValueError(f"{name} is {dtype} {shape}, wanted {kind} {wanted}")
            data = file.read(size)
        array = np.frombuffer(data, dtype, prod(shape)).reshape(shape)
        if dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} has numbers that are not finite")
        return array


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    start = file.read(len(_MAGIC) + 2)
    length = int.from_bytes(start[len(_MAGIC) :], "little")
    found = _FIELDS.fullmatch(file.read(length)) if length <= _HEADER else None
    if not start.startswith(_MAGIC) or found is None:
        raise ValueError("an array of another format than numpy's (1, 0)")
    shape = tuple(int(size) for size in found[2].split(b",") if size.strip())
    return shape, np.dtype(found[1].decode())


def _with_tokens(taken: _Taken, name: str, comparison: Comparison) -> Comparison:
    chunks = _chunks(taken, name, comparison) if taken.has(f"{name}.tokens") else ()
    clusters, sizes = (
        taken.take(f"{name}.{what}", "<i8", len(chunks)) if taken.has(f"{name}.{what}") else None
        for what in ("clusters", "sizes")
    )
    if sizes is not None and not (sizes.min(initial=0) >= 0 and sizes.sum() > 0):
        raise ValueError(f"{name}: tokens of no bytes")
    rows = []
    for i, row in enumerate(comparison.rows):
        if taken.has(f"{name}.{i}.nll"):
            scores = _scores(taken, f"{name}.{i}", _scored(row, chunks))
            row = replace(row, scores=scores)
        rows.append(row)
    return replace(comparison, chunks=chunks, clusters=clusters, sizes=sizes, rows=tuple(rows))


def _chunks(taken: _Taken, name: str, comparison: Comparison) -> tuple[Chunk, ...]:
    lengths = taken.take(f"{name}.lengths", "<i4")
    count, total = len(lengths), int(lengths.sum(dtype=np.int64))
    if not count or lengths.min() < 2:
        raise ValueError(f"{name}: a chunk of no tokens")
    tokens, outputs = (
        np.split(taken.take(f"{name}.{what}", kind, total), np.cumsum(lengths)[:-1])
        for what, kind in (("tokens", "<i4"), ("outputs", "?"))
    )
    texts = taken.take(f"{name}.texts", "<i4", count)
    if texts.min() < 0 or texts.max() >= len(comparison.protocol.texts):
        raise ValueError(f"{name}: chunks of texts that are not there")
    digests = taken.take(f"{name}.digests", "|u1", count, 32)
    chunks = tuple(map(Chunk, tokens, outputs, map(int, texts)))
    if any(c.digest != bytes(d).hex() for c, d in zip(chunks, digests, strict=True)):
        raise ValueError(f"{name}: the tokens are not those of the digests")
    return chunks


def _scored(row: Row, chunks: tuple[Chunk, ...]) -> int | None:
    """How many tokens of a row are scored, as far as is known."""
    if not chunks:
        return None
    numbers = range(len(chunks)) if row.chunks is None else row.chunks
    if not all(0 <= number < len(chunks) for number in numbers):
        raise ValueError(f"{row.column.name}: scored on chunks that are not there")
    return sum(chunks[number].n_scored for number in numbers)


def _scores(taken: _Taken, name: str, count: int | None) -> Scores:
    nll = taken.take(f"{name}.nll", "<f4", count).astype(np.float64)
    correct = taken.take(f"{name}.correct", "?", len(nll))
    if not taken.has(f"{name}.kld"):
        return Scores(nll, correct)
    kld, reverse, delta_p = (
        taken.take(f"{name}.{what}", "<f4", len(nll)).astype(np.float64)
        for what in ("kld", "reverse", "delta_p")
    )
    same_top = taken.take(f"{name}.same_top", "?", len(nll))
    return Scores(nll, correct, Divergence(kld, reverse, delta_p, same_top))


def _with_items(taken: _Taken, number: int, task: TaskResult) -> TaskResult:
    rows: list[TaskRow] = []
    for j, row in enumerate(task.rows):
        correct = taken.take(f"task{number}.{j}.correct", "?")
        chosen = taken.take(f"task{number}.{j}.chosen", "<i4", len(correct))
        rows.append(replace(row, correct=correct, chosen=chosen))
    return replace(task, rows=tuple(rows))
