"""Finished files compared."""

from collections.abc import Callable, Sequence
from pathlib import Path

from gemcut.eval.compare import Comparison, compare
from gemcut.eval.texts import Text


def evaluate(
    files: Sequence[Path],
    reference: Path | None,
    texts: Sequence[Path],
    n_ctx: int = 512,
    chunks: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Score files on texts, in lockstep; see `gemcut.eval.compare`.

    Raises:
        UsageError, TextError, GGUFError, EngineError: see `compare`.
    """
    read = [Text.read(path) for path in texts]
    return compare(files, reference, read, n_ctx, chunks, threads, progress)
