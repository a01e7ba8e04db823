"""Saving a reference's logits for llama-perplexity, which reads them with --kl-divergence-base."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gemcut.cores import default_threads
from gemcut.engine import ModelOptions
from gemcut.errors import OutputError
from gemcut.eval.scoring.column import Column
from gemcut.eval.scoring.kld_file import WANTED, file_bytes, saved_tokens, writing
from gemcut.eval.scoring.scorer import Models
from gemcut.eval.texts.chunks import Chunk, most_outputs, parts
from gemcut.eval.texts.framing import OWN
from gemcut.sizes import format_size


def check_saving(path: Path, framing: str) -> None:
    """Raise OutputError if logits of texts in this framing cannot be saved there."""
    if framing == OWN:
        raise OutputError(f"{path}: {WANTED}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: wanted the name of a file, in a folder that is there")


def save_kld(
    path: Path,
    column: Column,
    chunks: Sequence[Chunk],
    options: ModelOptions | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Let a column read all chunks once more, and write what such a file holds of its logits.

    Raises:
        OutputError: the chunks do not fit the format, or there is no room.
        EngineError: the file cannot be run.
    """
    tokens, threads = saved_tokens(chunks), threads or default_threads()
    n_ctx, most = tokens.shape[1], max(map(most_outputs, chunks))
    with Models() as models:
        scorer = models.open(column, options, column.context(n_ctx, most, threads))
        size = file_bytes(n_ctx, scorer.n_vocab, len(chunks))
        tell(f"{path}: {format_size(size)} of {column.name}'s logits")
        with writing(path, tokens, scorer.n_vocab) as writer:
            for number, chunk in enumerate(chunks):
                rows = [scorer.logits(part).copy() for part in parts(chunk)]
                writer.add(np.concatenate(rows), threads)
                progress(number + 1, len(chunks))
