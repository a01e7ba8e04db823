"""What the scheduler is asked for and what it answers, as plain values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gemcut.engine import Sampling
from gemcut.errors import ContextFull, EngineError
from gemcut.runtime.chat.timing import Timing

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Job:
    """Tokens to be continued."""

    tokens: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None  # None: as many as the context has room for; 0: with echo alone
    logprobs: int = 0  # so many alternatives are told with each token; 0: no log-probabilities
    # The prompt's own tokens are told with theirs (`Read`), and so is the one that ends the answer.
    # Nothing is reused.
    echo: bool = False
    # Begin with what a slot holds already. A cache filled by batches of other shapes differs in the
    # last bits, so that an answer depends on what was read before by as much as rounding does.
    reuse: bool = True

    def limit(self, n_ctx: int, n_vocab: int) -> int:
        """How many tokens prompt and answer may have, in a sequence of so many.

        Raises:
            ContextFull: the prompt leaves no room for an answer.
            EngineError: it is empty, not of the vocabulary, or no answer is wanted.
        """
        if not self.tokens:
            raise EngineError("the prompt is empty: there is nothing to continue")
        if len(self.tokens) >= n_ctx:
            raise ContextFull(len(self.tokens), n_ctx)
        if min(self.tokens) < 0 or max(self.tokens) >= n_vocab:
            raise EngineError(f"the prompt has a token outside the vocabulary, 0 to {n_vocab - 1}")
        if self.max_tokens is None:
            return n_ctx
        if self.max_tokens < (0 if self.echo else 1):
            raise EngineError(f"max_tokens is {self.max_tokens}, wanted 1 or more")
        return min(n_ctx, len(self.tokens) + self.max_tokens)


@dataclass(frozen=True)
class Drawn:
    """A token of an answer.

    Log-probabilities (natural) are the model's own, before the sampler changes any; `top` has the
    likeliest tokens with theirs, the best first. They are there if the job asked for them.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Read:
    """The prompt, once it is read, of a job that asked for its echo.

    tokens: each with its log-probability given those before it; the first has none.
    """

    tokens: tuple[Drawn, ...]


@dataclass(frozen=True)
class Ended:
    """The end of an answer, told once for every job.

    finish: "stop" (the model ended it), "length" (max_tokens or the context is reached),
        "cancelled" (or the scheduler was closed), "error".
    asked: whether an error is of what was asked for, such as its grammar.
    alone: whether no other job was worked on meanwhile, so that the timing is the machine's speed.
    """

    finish: Finish
    timing: Timing
    error: str | None = None
    asked: bool = False
    alone: bool = True


# Called in the scheduler's thread: it must not block.
News = Drawn | Read | Ended
Deliver = Callable[[News], None]


@dataclass(frozen=True)
class Stats:
    """What a scheduler did so far, and what it is doing."""

    prompt_tokens: int  # read
    cached_tokens: int  # of prompts, that an earlier job had read
    answer_tokens: int  # drawn
    active: int
    waiting: int
    finished: Mapping[Finish, int]
    preempted: int  # times that a job had to wait again, for want of room in the cache
    busy_seconds: float
    cells_used: int  # tokens that the cache holds, those of ended jobs included
    cells: int


def drawn(token: int, logits: NDArray[np.float32], logprobs: int) -> Drawn:
    """A token; with its log-probability and those of the `logprobs` likeliest ones, if any.

    Args:
        logits: float32 [n_vocab].
    """
    if logprobs < 1:
        return Drawn(token)
    peak = logits.max()
    total = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    best = [int(each) for each in _best(logits, min(logprobs, logits.size))]
    top = tuple((each, float(logits[each]) - total) for each in best)
    return Drawn(token, float(logits[token]) - total, top)


def _best(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The tokens of the highest logits, the best first."""
    if count == 1:
        return np.array([logits.argmax()])
    best = np.argpartition(logits, -count)[-count:]
    return best[np.argsort(-logits[best], kind="stable")]
