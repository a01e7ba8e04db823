"""Columns and chunks in, a number per token out: what was scored before comes from the cache."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from gemcut.cores import default_threads
from gemcut.engine import ModelOptions
from gemcut.errors import EngineError
from gemcut.eval.scoring.cache import NAME, Cache
from gemcut.eval.scoring.column import Column
from gemcut.eval.scoring.kld_file import KldReference
from gemcut.eval.scoring.passes import carry_out
from gemcut.eval.scoring.work import (
    LOADING,
    Began,
    Ended,
    Event,
    Failed,
    Told,
    Work,
    base_left,
    left,
)
from gemcut.eval.scoring.worker import Crash, run_isolated
from gemcut.eval.texts.chunks import Chunk
from gemcut.score import Scores

# (chunks that columns have read, of all that they have to), called after each.
Progress = Callable[[int, int], None]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Scored:
    """What came of it; a column is in `scores` or in `failures`.

    scores: of all its chunks, one after the other.
    failures: why a column has none.
    prefill: tokens per second of the decodes, the median over chunks, so that the first one's page
        faults do not count; not of columns whose scores were there before.
    base: of the numbers that stood in for a reference.
    """

    scores: Mapping[Column, Scores] = field(repr=False)
    failures: Mapping[Column, str]
    prefill: Mapping[Column, float]
    notes: tuple[str, ...] = ()
    base: Scores | None = field(default=None, repr=False)


def score_columns(
    columns: Sequence[Column],
    chunks: Sequence[Chunk],
    options: Mapping[Path, ModelOptions] | None = None,
    threads: int | None = None,
    cache: Cache | None = None,
    isolated: bool = False,
    base: KldReference | None = None,
    subset: Mapping[Column, Collection[int]] | None = None,
    memory: int | None = None,
    progress: Progress = lambda done, total: None,
    tell: Tell = lambda text: None,
) -> Scored:
    """Score every column on every chunk, each but the reference against it.

    Columns are in memory together where they fit; otherwise some are read after the reference, and
    compared with a store of what it computed.

    Args:
        columns: of which one may be the reference.
        options: how files are loaded (`fitting.placed`).
        cache: what is in it is not scored again, what is scored is put into it.
        isolated: in a process of its own, so that a crash costs one column.
        base: stands in for a reference; the chunks are its own.
        subset: of some columns, the numbers of the chunks that they are scored on.
        memory: bytes that may be taken on the host; None: what is available.
        tell: told what the user should know; it is in the notes, too.

    Raises:
        EngineError: the reference cannot be scored. Another column is a failure.
        TextError: the cache or the base is damaged.
        OutputError: the cache or the store cannot be written.
    """
    work = Work(
        tuple(columns),
        tuple(chunks),
        options or {},
        threads or default_threads(),
        subset or {},
        base,
        memory,
    )
    with ExitStack() as opened:
        if cache is None:
            folder = opened.enter_context(TemporaryDirectory(prefix="gemcut-"))
            cache = opened.enter_context(Cache(Path(folder) / NAME))
        cache.use([*map(work.key, work.columns), work.base_key])
        watcher = Watcher(cache, progress, tell)
        if isolated:
            _survive(work, cache, watcher)
        else:
            watcher.follow(work)
            carry_out(work, cache, watcher)
        return _scored(work, cache, watcher)


def _survive(work: Work, cache: Cache, watcher: "Watcher") -> None:
    """Carry out the work in another process; where that crashes, the rest of it in a new one."""
    while True:
        rest = work.without(watcher.failures)
        if not (left(rest, cache) or base_left(rest, cache)):
            return
        watcher.follow(rest)
        crash = run_isolated(rest, cache.path, watcher)
        if crash is None:
            return
        watcher.crashed(crash)


def _scored(work: Work, cache: Cache, watcher: "Watcher") -> Scored:
    def joined(key: str, column: Column | None = None) -> Scores:
        chunks = [work.chunks[number] for number in work.numbers(column)]
        found = [cache.get(key, chunk) for chunk in chunks]
        whole = [scores for scores in found if scores is not None]
        if len(whole) < len(found):
            raise EngineError(f"{cache.path}: scores are missing that were just put there")
        return Scores.join(whole)

    return Scored(
        {
            column: joined(work.key(column), column)
            for column in work.columns
            if column not in watcher.failures
        },
        watcher.failures,
        {column: median(speeds) for column, speeds in watcher.speeds.items()},
        tuple(watcher.notes),
        joined(work.base_key) if work.base else None,
    )


class Watcher:
    """Follows the work, in whatever process it is done.

    failures: why columns have no scores. speeds: tokens per second of each chunk.
    """

    def __init__(self, cache: Cache, progress: Progress, tell: Tell) -> None:
        self._cache, self._progress, self._tell = cache, progress, tell
        self._chunks: Sequence[Chunk] = ()
        self._reference: Column | None = None
        self._left: dict[Column, int] = {}
        self._done = 0
        self._current: Began | None = None
        self.failures: dict[Column, str] = {}
        self.speeds: dict[Column, list[float]] = {}
        self.notes: list[str] = []

    def follow(self, work: Work) -> None:
        """Begin anew with what the cache lacks of it."""
        todo = left(work, self._cache)
        self._chunks, self._reference, self._current = work.chunks, work.reference, None
        self._left = {column: len(numbers) for column, numbers in todo.items()}

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case Began():
                self._current = event
            case Ended(column, chunk, seconds):
                self._current = None
                self._left[column] -= 1
                self._done += 1
                if seconds:
                    speed = len(self._chunks[chunk].tokens) / seconds
                    self.speeds.setdefault(column, []).append(speed)
            case Failed(column, why):
                self._fail(column, why)
            case Told(text):
                self.notes.append(text)
                self._tell(text)
        if not isinstance(event, Began | Told):
            self._progress(self._done, self._done + sum(self._left.values()))

    def crashed(self, crash: Crash) -> None:
        """The process ended: the column that was at work failed.

        Raises EngineError if that was the reference, or none.
        """
        if self._current is None:
            raise EngineError(f"the process that scores ended ({crash}): run it again")
        column, chunk = self._current.column, self._current.chunk
        where = "while it was loaded" if chunk == LOADING else f"in chunk {chunk + 1}"
        why = f"llama.cpp crashed {where} ({crash})"
        if column == self._reference:
            raise EngineError(f"{column.name}: {why}")
        self._fail(column, why)

    def _fail(self, column: Column, why: str) -> None:
        self.failures[column] = why
        self._left[column] = 0
        self.speeds.pop(column, None)
