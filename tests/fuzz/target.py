"""What a target is: a reader of foreign bytes, good inputs for it, and how they are damaged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutate import Mutator

Run = Callable[[bytes], object]  # one case: returns, or raises


@dataclass(frozen=True)
class Target:
    """One reader.

    seeds: makes the good inputs, each of which is read without any error.
    open: given an empty folder, what runs a case.
    forks: each case has a process of its own, as many end theirs.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    mutators: Sequence[Mutator]
    open: Callable[[Path], Run]
    forks: bool = False


def on_file(name: str, read: Callable[[Path], object]) -> Callable[[Path], Run]:
    """Runs a reader of files: each case is written under a name first."""

    def begin(folder: Path) -> Run:
        path = folder / name

        def run(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return run

    return begin


def on_text(read: Callable[[str], object]) -> Callable[[Path], Run]:
    """Runs a reader of texts, which have been decoded; halves of characters may be in them."""

    def begin(folder: Path) -> Run:
        return lambda data: read(data.decode("utf-8", "surrogateescape"))

    return begin


def on_bytes(read: Callable[[bytes], object]) -> Callable[[Path], Run]:
    """Runs a reader of bytes."""
    return lambda folder: read
