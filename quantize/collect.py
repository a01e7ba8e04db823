"""Collecting statistics: chunks of text through llama.cpp, with a watch over what it multiplies.

The chunks are those of llama.cpp's tools: one context length each, a BOS in place of the first
token where the vocabulary wants one, every row counted. An interrupted collection leaves what it
has beside the result, and the same call continues it.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from gemcut.artefact import parse
from gemcut.engine import ContextOptions
from gemcut.errors import GGUFError, OutputError, UsageError
from gemcut.gguf_file import Value
from gemcut.llama import Context, Model
from gemcut.quantize.collector import Collector
from gemcut.quantize.identity import VERSION, check_key
from gemcut.quantize.statistics import Statistics, read_statistics, write_statistics

Tokens = NDArray[np.int32]
Progress = Callable[[int, int], None]  # chunks done, chunks in all

MIN_CONTEXT = 16  # tokens: llama.cpp counts no product of fewer rows
_UBATCH = 512  # tokens computed at once; short chunks are computed together
_SAVE_EVERY = 10  # chunks
_FEWEST = 4  # that are read however long they take
_KEY = "gemcut.imatrix.key"  # of an unfinished file


class Unfinished:
    """What a collection has so far, in a file beside its result."""

    def __init__(self, output: Path, model: str, chunks: Tokens) -> None:
        """Name it; nothing is read.

        Args:
            model: a digest that changes when the model does.
        """
        self.path = output.with_name(f".{output.name}.unfinished")
        self._key = {
            "version": VERSION,
            "model": model,
            "number of chunks": str(chunks.shape[0]),
            "context": str(chunks.shape[1]),
            "text": hashlib.sha256(chunks.tobytes()).hexdigest(),
        }

    def read(self, restart: bool = False) -> Statistics:
        """What is there; nothing, if nothing is there, or nothing of it is wanted.

        Raises:
            OutputError: it belongs to another collection, or there is no folder for it.
        """
        if not self.path.parent.is_dir():
            raise OutputError(f"{self.path}: cannot be written: make the folder first")
        if restart:
            self.remove()
        if not self.path.exists():
            return Statistics({})
        try:
            found = read_statistics(self.path)
        except GGUFError as error:
            raise OutputError(f"{error}; --restart begins anew") from error
        check_key(self.path, _key_of(found), self._key)
        return found

    def write(self, collected: Statistics) -> None:
        """Keep what is there so far. Raises OutputError."""
        key = Value("str", json.dumps(self._key))
        write_statistics(self.path, replace(collected, extra={_KEY: key}))

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)


def collect(
    model: Model,
    chunks: Tokens,
    threads: int | None = None,
    progress: Progress | None = None,
    unfinished: Unfinished | None = None,
    restart: bool = False,
    tell: Callable[[str], None] | None = None,
    seconds: float | None = None,
) -> Statistics:
    """Read chunks of tokens [n, n_ctx] and collect the statistics of every weight they meet.

    What an interrupted call has kept is continued. The logits of a chunk, or of several short ones,
    are held: n_ctx * n_vocab * 4 bytes.

    Args:
        unfinished: where to keep what is collected, now and then and when it fails.
        restart: throw away what is kept, and begin anew.
        tell: told in a line when work is continued, or is interrupted and can be continued.
        seconds: read no further when so much time has passed, but a few chunks in any case.

    Raises:
        UsageError: the context is too short to be counted.
        OutputError: see `Unfinished`.
        EngineError: llama.cpp refuses, or the model's numbers are not finite.
    """
    count, n_ctx = chunks.shape
    options = _options(n_ctx, count, threads)
    kept = unfinished.read(restart) if unfinished else Statistics({})
    collector = Collector(kept.entries)
    saved = kept.chunk_count
    if tell and saved:
        tell(f"continuing behind chunk {saved} of {count}")
    end = None if seconds is None else monotonic() + seconds
    with Context(model, options, collector.on_tensor, collector.wants) as context:
        try:
            while (done := kept.chunk_count) < count and not _late(end, done):
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
                        tell(
                            f"{done} of {count} chunks are kept: the same command continues, "
                            "--restart begins anew"
                        )
            raise
    return Statistics(kept.entries, (), kept.chunk_count, n_ctx)


def _late(end: float | None, done: int) -> bool:
    return end is not None and done >= _FEWEST and monotonic() > end


def _key_of(statistics: Statistics) -> dict[str, str]:
    """The key that unfinished statistics hold; empty if they are of something else."""
    try:
        key = parse(str(statistics.extra[_KEY].data))
        return {name: str(value) for name, value in key.items()}
    except (KeyError, ValueError, AttributeError, RecursionError):
        return {}


def _options(n_ctx: int, count: int, threads: int | None) -> ContextOptions:
    if n_ctx < MIN_CONTEXT:
        raise UsageError(f"a context of {n_ctx} tokens: wanted {MIN_CONTEXT} or more")
    together = max(1, min(_UBATCH // n_ctx, count))
    rest = n_ctx % _UBATCH
    # A remainder too short to be counted is computed with what comes before it.
    ubatch = _UBATCH + (rest if together == 1 and rest < MIN_CONTEXT else 0)
    total = together * n_ctx
    return ContextOptions(total, total, ubatch, together, threads)
