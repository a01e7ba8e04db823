"""How fast a file runs on this machine: prefill and decode, measured, in tokens per second.

At several depths, which is how much of the context is filled already: attention goes over all of
it, so a long conversation is slower. Random token ids, as llama-bench takes them: the speed of a
model does not depend on their meaning, except that a mixture of experts may touch other experts on
real text. Nothing here predicts speed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from gemcut.cores import default_threads
from gemcut.engine import ContextOptions
from gemcut.errors import UsageError
from gemcut.llama import Context, Model

_SEED = 0
_LAST_FILLED = 1024  # tokens that fill a context at once at most, so that it can be told about

Tell = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True)
class MeasuredSpeed:
    """Tokens per second at one depth: the median of `repeats` runs, and half of their range.

    prefill: a prompt of n_prompt tokens, logits for its last token; 0 if n_prompt is 0.
    decode: n_generate tokens one after the other, logits for each; 0 if n_generate is 0.
    """

    prefill: float
    decode: float
    n_prompt: int
    n_generate: int
    repeats: int
    threads: int
    depth: int = 0  # tokens that the context holds before
    prefill_spread: float = 0.0
    decode_spread: float = 0.0


def speed(
    path: Path,
    n_prompt: int = 512,
    n_generate: int = 64,
    repeats: int = 3,
    threads: int | None = None,
) -> MeasuredSpeed:
    """Measure one file with an empty context. Takes repeats + 1 runs.

    Raises UsageError for a number below one, EngineError if the file cannot be loaded or run.
    """
    if min(n_prompt, n_generate, repeats) < 1:
        raise UsageError(
            f"cannot measure {n_prompt} prompt tokens and {n_generate} generated ones "
            f"{repeats} times: each must be at least 1"
        )
    n_ctx = max(n_prompt, n_generate)
    options = ContextOptions(n_ctx, n_batch=n_prompt, threads=threads, n_outputs=1)
    with Model.load(path) as model, Context(model, options) as context:
        return speeds(context, (0,), n_prompt, n_generate, repeats)[0]


def speeds(
    context: Context,
    depths: Sequence[int] = (0,),
    n_prompt: int = 512,
    n_generate: int = 64,
    repeats: int = 3,
    tell: Tell = lambda done, total: None,
) -> list[MeasuredSpeed]:
    """Measure a context, whose first sequence is used up, at every depth, in ascending order.

    Decode starts at the depth itself, as prefill does, not behind the prompt. Warming up is not
    counted, nor is filling the context.

    Args:
        tell: told (steps done, steps in all), whose lengths are not alike.

    Raises:
        UsageError: nothing to measure, or more tokens than the context holds.
        EngineError: the model does not run.
    """
    depths = sorted(set(depths))
    _check(context, depths, n_prompt, n_generate, repeats)
    meter = _Meter(context, n_prompt, n_generate, tell, len(depths) * (repeats + 1) + 1)
    meter.run(depths[0])  # pages the file in, and lets the processor reach its working clock
    return [meter.measure(depth, repeats) for depth in depths]


def _check(
    context: Context, depths: Sequence[int], n_prompt: int, n_generate: int, repeats: int
) -> None:
    sane = min(n_prompt, n_generate) >= 0 and max(n_prompt, n_generate) and repeats > 0
    if not depths or depths[0] < 0 or not sane:
        raise UsageError(
            f"cannot measure {n_prompt} prompt tokens and {n_generate} generated ones {repeats} "
            f"times at depths of {', '.join(map(str, depths)) or 'none'}"
        )
    if (needed := depths[-1] + max(n_prompt, n_generate)) > context.n_ctx_seq:
        raise UsageError(
            f"a depth of {depths[-1]} needs a context of {needed} tokens, this one holds "
            f"{context.n_ctx_seq}: a larger -c or a smaller --depth"
        )


class _Meter:
    """Runs prompts and answers of random tokens, and takes their times."""

    def __init__(
        self, context: Context, n_prompt: int, n_generate: int, tell: Tell, steps: int
    ) -> None:
        self._context, self._prompt, self._generate = context, n_prompt, n_generate
        self._tell, self._done, self._steps = tell, 0, steps
        draw = np.random.default_rng(_SEED).integers
        self._ids = draw(0, context.model.n_vocab, context.n_ctx_seq, np.int32)
        context.forget()

    def measure(self, depth: int, repeats: int) -> MeasuredSpeed:
        """The speed at a depth."""
        self._fill(depth)
        self._step()
        prefill, decode = zip(*(self.run(depth) for _ in range(repeats)), strict=True)
        of_prompt, of_answer = _rate(self._prompt, prefill), _rate(self._generate, decode)
        threads = self._context.options.threads or default_threads()
        return MeasuredSpeed(
            of_prompt[0],
            of_answer[0],
            self._prompt,
            self._generate,
            repeats,
            threads,
            depth,
            of_prompt[1],
            of_answer[1],
        )

    def run(self, depth: int) -> tuple[float, float]:
        """Seconds for a prompt, and for an answer, each right behind the depth."""
        ids, step = self._ids, self._context.n_batch
        self._fill(depth)
        begun = perf_counter()
        for start in range(depth, depth + self._prompt, step):
            stop = min(start + step, depth + self._prompt)
            last = stop == depth + self._prompt
            self._context.decode(ids[start:stop], start, outputs="last" if last else "none")
        prefill = perf_counter() - begun
        self._fill(depth)
        answer = ids[depth : depth + self._generate].tolist()
        begun = perf_counter()
        for start, token in enumerate(answer, depth):
            self._context.step(token, start)
        decode = perf_counter() - begun
        self._step()
        return prefill, decode

    def _fill(self, depth: int) -> None:
        """Have the context hold so many tokens, reading again what it cannot go back to."""
        step = min(self._context.n_batch, _LAST_FILLED)
        for start in range(self._context.forget(0, depth), depth, step):
            stop = min(start + step, depth)
            self._context.decode(self._ids[start:stop], start, outputs="none")

    def _step(self) -> None:
        self._done += 1
        self._tell(self._done, self._steps)


def _rate(tokens: int, seconds: Sequence[float]) -> tuple[float, float]:
    """Tokens per second: the median, and half of the range."""
    if not tokens:
        return 0.0, 0.0
    rates = [tokens / each for each in seconds]
    return median(rates), (max(rates) - min(rates)) / 2
