"""How fast a file runs on this machine: prefill and decode, measured, in tokens per second.

Random token ids, as llama-bench takes them: the speed of a model does not depend on their meaning,
except that a mixture of experts may touch other experts on real text. Nothing here predicts speed.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from gemcut.engine import ContextOptions, default_threads
from gemcut.errors import UsageError
from gemcut.llama import Context, Model

_SEED = 0


@dataclass(frozen=True)
class Speed:
    """Tokens per second, the median of `repeats` runs after one that is not counted.

    prefill: a prompt of n_prompt tokens in one batch, logits for its last token.
    decode: n_generate tokens one after the other, right after that prompt, logits for each.
    """

    prefill: float
    decode: float
    n_prompt: int
    n_generate: int
    repeats: int
    threads: int


def speed(
    path: Path,
    n_prompt: int = 512,
    n_generate: int = 64,
    repeats: int = 3,
    threads: int | None = None,
) -> Speed:
    """Measure one file. Takes repeats + 1 runs of n_prompt + n_generate tokens.

    Raises UsageError for a number below one, EngineError if the file cannot be loaded or run.
    """
    if min(n_prompt, n_generate, repeats) < 1:
        raise UsageError(
            f"cannot measure {n_prompt} prompt tokens and {n_generate} generated ones "
            f"{repeats} times: each must be at least 1"
        )
    n_ctx, threads = n_prompt + n_generate, threads or default_threads()
    options = ContextOptions(n_ctx, n_batch=n_prompt, threads=threads, n_outputs=1)
    with Model.load(path) as model, Context(model, options) as context:
        ids = np.random.default_rng(_SEED).integers(0, model.n_vocab, n_ctx, np.int32)
        # The first run pages the file in and lets the processor reach its working clock.
        runs = [_run(context, ids, n_prompt) for _ in range(repeats + 1)][1:]
    prefill, decode = (median(column) for column in zip(*runs, strict=True))
    return Speed(n_prompt / prefill, n_generate / decode, n_prompt, n_generate, repeats, threads)


def _run(context: Context, ids: NDArray[np.int32], n_prompt: int) -> tuple[float, float]:
    """Seconds for the prompt, and for the tokens after it one by one."""
    context.forget()
    begin = perf_counter()
    context.decode(ids[:n_prompt], outputs="last")
    middle = perf_counter()
    for position in range(n_prompt, len(ids)):
        context.decode(ids[position : position + 1], start=position, outputs="last")
    return middle - begin, perf_counter() - middle
