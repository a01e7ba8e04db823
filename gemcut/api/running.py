"""A finished file at work: conversations, and comparison with others."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gemcut.engine import ModelOptions
from gemcut.eval.compare import Comparison, compare
from gemcut.eval.texts import Text
from gemcut.runtime.chat import Chat, conversation_options, open_chat


def load(
    path: Path,
    n_ctx: int | None = None,
    threads: int | None = None,
    gpu_layers: int = -1,
    sampling: Mapping[str, Any] | None = None,
    system: str | None = None,
    think: bool = False,
) -> Chat:
    """Load a GGUF for a conversation; close it, or use it as a context manager.

    Args:
        sampling: what to change of the sampling that the file recommends.

    Raises:
        EngineError: the file cannot be loaded or the context cannot be made.
    """
    options = partial(conversation_options, n_ctx=n_ctx, threads=threads)
    return open_chat(path, ModelOptions(gpu_layers), options, sampling or {}, system, think)


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
