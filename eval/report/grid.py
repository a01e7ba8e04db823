"""A small table as plain text: what terminal, Markdown and page show in their own ways."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress


@dataclass(frozen=True)
class Heading:
    """A column. rank: the higher, the earlier it is left out where there is little room.

    meaning: what is in it, where the title does not say.
    """

    title: str
    right: bool = True  # aligned
    rank: int = 0
    meaning: str = ""


@dataclass(frozen=True)
class Grid:
    """Rows of cells under headings. notes: sentences below it."""

    title: str
    headings: tuple[Heading, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def legend(self) -> str:
        """What is in the columns, as a sentence."""
        found = "; ".join(f"{h.title}: {h.meaning}" for h in self.headings if h.meaning)
        return f"{found}." if found else ""

    def up_to(self, rank: int) -> "Grid":
        """Without the columns of higher ranks."""
        return self._only([h.rank <= rank for h in self.headings])

    def without_empty(self) -> "Grid":
        """Without the columns in which no row has anything."""
        return self._only([any(row[i] for row in self.rows) for i in range(len(self.headings))])

    def renamed(self, names: Mapping[str, str]) -> "Grid":
        """With other names in the first column; those that are not among them stay."""
        rows = tuple((names.get(first, first), *others) for first, *others in self.rows)
        return replace(self, rows=rows)

    def _only(self, kept: Sequence[bool]) -> "Grid":
        rows = tuple(tuple(compress(row, kept)) for row in self.rows)
        return replace(self, headings=tuple(compress(self.headings, kept)), rows=rows)


def headings(*titles: str) -> tuple[Heading, ...]:
    """The first column to the left, all others to the right."""
    return tuple(Heading(title, right=i > 0) for i, title in enumerate(titles))


def grid(title: str, names: Sequence[Heading], rows: Sequence[Sequence[str]], *notes: str) -> Grid:
    """A grid without its empty columns."""
    return Grid(title, tuple(names), tuple(map(tuple, rows)), notes).without_empty()
