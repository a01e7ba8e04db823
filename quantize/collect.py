"""Collecting statistics: chunks of text through llama.cpp, with a watch over what it multiplies.

The chunks are those of llama.cpp's tools: one context length each, a BOS in place of the first
token where the vocabulary wants one, every row counted. An interrupted collection leaves what it
has beside the result, and can be continued.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemcut import __version__
from gemcut.engine import PINNED, ContextOptions
from gemcut.errors import GGUFError, OutputError, UsageError
from gemcut.gguf_file import Value
from gemcut.llama import Context, Model
from gemcut.quantize.collector import Collector
from gemcut.quantize.statistics import Statistics, read_statistics, write_statistics

Tokens = NDArray[np.int32]
Progress = Callable[[int, int], None]  # chunks done, chunks in all

MIN_CONTEXT = 16  # tokens: llama.cpp counts no product of fewer rows
_UBATCH = 512  # tokens computed at once; short chunks are computed together
_SAVE_EVERY = 10  # chunks
_KEY = "gemcut.imatrix.key"  # of an unfinished file


class Unfinished:
    """What a collection has so far, in a file beside its result."""

    def __init__(self, output: Path, model: str, chunks: Tokens) -> None:
        """Name it; nothing is read.

        Args:
            model: a digest that changes when the model does.
        """
        self.path = output.with_name(f".{output.name}.unfinished")
        described = repr((__version__, PINNED, model, chunks.shape))
        self._key = hashlib.sha256(described.encode() + chunks.tobytes()).hexdigest()

    def read(self, resume: bool) -> Statistics:
        """What is there; nothing, if nothing is there.

        Raises:
            OutputError: it is not to be continued, or it belongs to another collection; or there
                is no folder for it.
        """
        if not self.path.parent.is_dir():
            raise OutputError(f"{self.path}: cannot be written: make the folder first")
        if not self.path.exists():
            return Statistics({})
        if not resume:
            raise OutputError(
                f"{self.path}: an unfinished collection lies there: --resume continues it; remove "
                "the file to begin anew"
            )
        try:
            found = read_statistics(self.path)
        except GGUFError as error:
            raise OutputError(f"{error}; remove it to begin anew") from error
        if _KEY not in found.extra or found.extra[_KEY].data != self._key:
            raise OutputError(
                f"{self.path}: belongs to a collection of another model, text, context or version; "
                "the command that began it would continue; remove the file to begin anew"
            )
        return found

    def write(self, collected: Statistics) -> None:
        """Keep what is there so far. Raises OutputError."""
        write_statistics(self.path, replace(collected, extra={_KEY: Value("str", self._key)}))

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)


def collect(
    model: Model,
    chunks: Tokens,
    threads: int | None = None,
    progress: Progress | None = None,
    unfinished: Unfinished | None = None,
    resume: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Statistics:
    """Read chunks of tokens [n, n_ctx] and collect the statistics of every weight they meet.

    The logits of a chunk, or of several short ones, are held: n_ctx * n_vocab * 4 bytes.

    Args:
        unfinished: where to keep what is collected, now and then and when it fails.
        resume: continue what is there.
        tell: told in a line when work is continued, or is interrupted and can be continued.

    Raises:
        UsageError: the context is too short to be counted.
        OutputError: see `Unfinished`.
        EngineError: llama.cpp refuses, or the model's numbers are not finite.
    """
    count, n_ctx = chunks.shape
    options = _options(n_ctx, count, threads)
    kept = unfinished.read(resume) if unfinished else Statistics({})
    collector = Collector(kept.entries)
    saved = kept.chunk_count
    if tell and saved:
        tell(f"continuing behind chunk {saved} of {count}")
    with Context(model, options, collector.on_tensor, collector.wants) as context:
        try:
            while (done := kept.chunk_count) < count:
                context.forget()
                context.decode(chunks[done : done + options.n_seq])
                done = min(done + options.n_seq, count)
                kept = Statistics(collector.commit(), (), done, n_ctx)
                if unfinished and done - saved >= _SAVE_EVERY and done < count:
                    unfinished.write(kept)
                    saved = done
                if progress:
                    progress(done, count)
        except BaseException:
            if unfinished and kept.chunk_count:
                with suppress(OutputError):  # it is another error that is to be told
                    unfinished.write(kept)
                    if tell:
                        done = kept.chunk_count
                        tell(f"{done} of {count} chunks are kept: --resume continues behind them")
            raise
    return Statistics(kept.entries, (), count, n_ctx)


def _options(n_ctx: int, count: int, threads: int | None) -> ContextOptions:
    if n_ctx < MIN_CONTEXT:
        raise UsageError(f"a context of {n_ctx} tokens: wanted {MIN_CONTEXT} or more")
    together = max(1, min(_UBATCH // n_ctx, count))
    rest = n_ctx % _UBATCH
    # A remainder too short to be counted is computed with what comes before it.
    ubatch = _UBATCH + (rest if together == 1 and rest < MIN_CONTEXT else 0)
    total = together * n_ctx
    return ContextOptions(total, total, ubatch, together, threads)
