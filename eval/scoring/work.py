"""What is to be scored, and what is told of it: plain values, so that another process can do it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from gemcut.engine import ModelOptions
from gemcut.eval.files import fingerprint
from gemcut.eval.scoring.cache import Cache
from gemcut.eval.scoring.column import REFERENCE, Column
from gemcut.eval.scoring.kld_file import KldReference
from gemcut.eval.texts.chunks import Chunk, most_outputs

LOADING = -1  # in place of a chunk's number


@dataclass(frozen=True)
class Began:
    """A column begins to read a chunk, or to load; it ends when another begins, or with `Ended`."""

    column: Column
    chunk: int


@dataclass(frozen=True)
class Ended:
    """A column read a chunk, in so many seconds; None: in a way that is not timed."""

    column: Column
    chunk: int
    seconds: float | None


@dataclass(frozen=True)
class Failed:
    """A column cannot be scored, and why."""

    column: Column
    why: str


@dataclass(frozen=True)
class Told:
    """Something that the user should know."""

    text: str


Event = Began | Ended | Failed | Told
Report = Callable[[Event], None]


@dataclass(frozen=True)
class Work:
    """Columns and the chunks each is scored on.

    columns: the reference first, if there is one.
    subset: of some columns, the numbers of the chunks that they are scored on.
    options: how files are loaded, where it is not as usual.
    base: log-probabilities in the place of a reference.
    memory: bytes that may be taken on the host; None: what is available.
    """

    columns: tuple[Column, ...]
    chunks: Sequence[Chunk] = field(repr=False)
    options: Mapping[Path, ModelOptions] = field(default_factory=dict)
    threads: int = 1
    subset: Mapping[Column, Collection[int]] = field(default_factory=dict, repr=False)
    base: KldReference | None = None
    memory: int | None = None

    @property
    def reference(self) -> Column | None:
        """What the other columns are compared with."""
        return next((column for column in self.columns if column.role == REFERENCE), None)

    @cached_property
    def base_key(self) -> str:
        """The base's name in the cache."""
        return fingerprint([self.base.path]) if self.base else ""

    def key(self, column: Column) -> str:
        """A column's name in the cache: a digest of what decides its numbers and their differences
        from the reference."""
        if column == self.reference:
            against = ""
        else:
            against = self.reference.key if self.reference else self.base_key
        used = self.options.get(column.file.path, ModelOptions()).devices or ()
        return sha256(f"{column.key} {against} {' '.join(used)}".encode()).hexdigest()

    def numbers(self, column: Column | None = None) -> Sequence[int]:
        """The chunks that a column is scored on, in order; of the base all."""
        chosen = self.subset.get(column) if column else None
        return range(len(self.chunks)) if chosen is None else sorted(set(chosen))

    def without(self, columns: Collection[Column]) -> "Work":
        """The same for the other columns."""
        kept = tuple(column for column in self.columns if column not in columns)
        return replace(self, columns=kept)

    @property
    def longest(self) -> int:
        """Tokens of the longest chunk."""
        return max((len(chunk.tokens) for chunk in self.chunks), default=0)

    @property
    def most_outputs(self) -> int:
        """Rows of logits that are needed at once, at most."""
        return max((most_outputs(chunk) for chunk in self.chunks), default=0)


def left(work: Work, cache: Cache) -> dict[Column, set[int]]:
    """The chunks that each column has to read: what the cache lacks, of equal chunks one.

    The reference reads what another column is to be compared on, too. A column that has nothing to
    read is not in it.
    """
    todo = {
        column: cache.missing(work.key(column), work.chunks, work.numbers(column))
        for column in work.columns
    }
    if reference := work.reference:
        todo[reference].update(*todo.values())
    return {column: numbers for column, numbers in todo.items() if numbers}


def base_left(work: Work, cache: Cache) -> set[int]:
    """The chunks of the base whose own scores the cache lacks."""
    return cache.missing(work.base_key, work.chunks, work.numbers()) if work.base else set()
