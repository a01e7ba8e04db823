"""What the scheduler is asked for and what it answers, as plain values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gemcut.engine import Sampling
from gemcut.runtime.chat.timing import Timing
from gemcut.score import log_softmax

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Job:
    """Tokens to be continued."""

    tokens: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None  # None: as many as the context has room for
    logprobs: int = 0  # so many alternatives are told with each token; 0: no log-probabilities
    # Begin with what a slot holds already. A cache filled by batches of other shapes differs in the
    # last bits, so that an answer depends on what was read before by as much as rounding does.
    reuse: bool = True


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
class Ended:
    """The end of an answer, told once for every job.

    finish: "stop" (the model ended it), "length" (max_tokens or the context is reached),
        "cancelled" (or the scheduler was closed), "error".
    alone: whether no other job was worked on meanwhile, so that the timing is the machine's speed.
    """

    finish: Finish
    timing: Timing
    error: str | None = None
    alone: bool = True


# Called in the scheduler's thread: it must not block.
Deliver = Callable[[Drawn | Ended], None]


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
    likely = log_softmax(logits)
    count = min(logprobs, likely.size)
    best = np.argpartition(likely, -count)[-count:]
    best = best[np.argsort(-likely[best], kind="stable")]
    return Drawn(token, float(likely[token]), tuple((int(i), float(likely[i])) for i in best))
