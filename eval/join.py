"""Results of several comparisons seen as one, without the models."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from gemcut.errors import UsageError
from gemcut.eval.assemble import assemble, covering
from gemcut.eval.comparison import Comparison, Report, Row
from gemcut.eval.tasks.result import TaskResult
from gemcut.eval.texts.chunks import MIN_CHUNKS, Chunk

_Key = tuple[int, str, str | None]  # context, framing, the reference


def join(reports: Sequence[Report]) -> Report:
    """All rows of comparisons of one protocol and reference, on the chunks that they share.

    Raises:
        UsageError: results that have too little text, or no reference, in common.
    """
    found: dict[_Key, list[Comparison]] = {}
    for each in chain.from_iterable(report.comparisons for report in reports):
        found.setdefault(_key(each), []).append(each)
    if len(reports) > 1 and all(len(each) < 2 for each in found.values()):
        said = "; ".join(map(_described, found))
        raise UsageError(f"nothing in these results can be compared: {said}")
    anatomies = {each.name: each for report in reports for each in report.files}
    diagnoses = (report.diagnosis for report in reports if report.diagnosis)
    return Report(
        tuple(map(_joined, found.values())),
        tuple(anatomies.values()),
        _tasks([task for report in reports for task in report.tasks]),
        next(diagnoses, None),
        notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
    )


def _key(comparison: Comparison) -> _Key:
    base, protocol = comparison.reference, comparison.protocol
    return protocol.n_ctx, protocol.framing, base.column.key if base else None


def _described(key: _Key) -> str:
    n_ctx, framing, base = key
    held = f"against {base[:12]}" if base else "without a reference"
    return f"{framing} in chunks of {n_ctx} {held}"


def _joined(comparisons: Sequence[Comparison]) -> Comparison:
    first, *others = comparisons
    if not others:
        return first
    shared = set.intersection(*({chunk.digest for chunk in each.chunks} for each in comparisons))
    if len(shared) < MIN_CHUNKS:
        raise UsageError(
            f"the results share {len(shared)} chunks of text, wanted {MIN_CHUNKS}: "
            "compare on the same texts"
        )
    if first.sizes is None:
        raise UsageError("a result holds no bytes of its chunks: it is damaged; compare anew")
    kept = np.array([chunk.digest in shared for chunk in first.chunks])
    chunks = [chunk for chunk, keep in zip(first.chunks, kept, strict=True) if keep]
    rows: dict[str, Row] = {}
    for each in comparisons:
        for row in _restricted(each, chunks):
            known = rows.get(row.column.key)
            if known is None or known.scores is None:
                rows[row.column.key] = row
    protocol = covering(first.protocol, chunks, first.sizes[kept])
    notes = dict.fromkeys(note for each in comparisons for note in each.notes)
    return assemble(protocol, chunks, first.sizes[kept], list(rows.values()), tuple(notes))


def _restricted(comparison: Comparison, chunks: Sequence[Chunk]) -> Iterator[Row]:
    """The rows on these chunks alone, in their order: texts may have been read in another one."""
    every = range(len(comparison.chunks))
    for row in comparison.rows:
        held = [comparison.chunks[n] for n in (every if row.chunks is None else row.chunks)]
        ends = np.cumsum([chunk.n_scored for chunk in held])
        end_of = dict(zip((chunk.digest for chunk in held), ends.tolist(), strict=True))
        numbers = tuple(n for n, chunk in enumerate(chunks) if chunk.digest in end_of)
        if row.scores is None:
            yield row
        elif numbers:
            found = [chunks[n] for n in numbers]
            tokens = [np.arange(-c.n_scored, 0) + end_of[c.digest] for c in found]
            scores = row.scores.where(np.concatenate(tokens))
            yield replace(row, scores=scores, chunks=None if row.chunks is None else numbers)


def _tasks(tasks: Sequence[TaskResult]) -> tuple[TaskResult, ...]:
    """One result for each task and choice of items, with the rows of all files."""
    found: dict[tuple[str, tuple[int, ...]], TaskResult] = {}
    for task in tasks:
        known = found.setdefault((task.sha256, task.items), task)
        names = {row.name for row in known.rows}
        more = tuple(row for row in task.rows if row.name not in names)
        found[task.sha256, task.items] = replace(known, rows=known.rows + more)
    return tuple(found.values())
