"""From logits to numbers per token: log-likelihood, KL divergence, top-1 agreement.

Pure numpy. Nothing here runs a model, chooses which tokens are scored, or averages: it turns
blocks of logits into one number per scored token. Logits stay where llama.cpp put them; the work
is done a few rows at a time, so a vocabulary of 262,144 needs a few MB, not copies. Exponentials
are taken in float32, as the logits are, and added up in float64: against float64 throughout a KL
divergence is off by 2e-7 nats at most, a hundredth of what another batch shape changes.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from queue import SimpleQueue
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gemcut.errors import EngineError

Floats = NDArray[np.float64]
Logits = NDArray[np.float32]
Bools = NDArray[np.bool_]
Chosen = Bools | NDArray[np.intp]  # a mask of tokens, or their numbers

# Fits the caches of a small machine: larger blocks measured slower, whatever the vocabulary.
_BLOCK = 1 << 17


@dataclass(frozen=True)
class Divergence:
    """How a candidate's distributions differ from the reference's: one entry per scored token.

    kld: KL(reference || candidate) = sum_i p_i (ln p_i - ln q_i) in nats, over the whole
        vocabulary (Kullback and Leibler, 1951).
    reverse: KL(candidate || reference), which weighs what the candidate made up.
    delta_p: q(target) - p(target), the change of the true next token's probability.
    same_top: whether both give their highest logit to the same token (ties: the lowest id).
    """

    kld: Floats
    reverse: Floats
    delta_p: Floats
    same_top: Bools

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The parts one after the other."""
        return cls(*(np.concatenate(column) for column in _columns(parts)))

    def where(self, chosen: Chosen) -> Self:
        """Of some of the tokens."""
        return type(self)(*(column[chosen] for (column,) in _columns([self])))


@dataclass(frozen=True)
class Scores:
    """One model on the scored tokens of a text.

    nll: -ln p(target) in nats, one entry per scored token; exp of its mean is the perplexity.
    correct: whether the most likely token is the target.
    divergence: against the reference; None where there is none.
    """

    nll: Floats
    correct: Bools
    divergence: Divergence | None = None

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The parts one after the other; compared with a reference only if every part is."""
        divergences = [part.divergence for part in parts if part.divergence is not None]
        whole = len(divergences) == len(parts)
        return cls(
            np.concatenate([part.nll for part in parts]),
            np.concatenate([part.correct for part in parts]),
            Divergence.join(divergences) if whole else None,
        )

    def where(self, chosen: Chosen) -> Self:
        """Of some of the tokens."""
        d = self.divergence
        return type(self)(self.nll[chosen], self.correct[chosen], d and d.where(chosen))


def score(
    targets: NDArray[np.int32],
    candidates: Sequence[Logits],
    reference: Logits | None = None,
    threads: int = 1,
    cutoff: float | None = None,
) -> tuple[Scores, ...]:
    """Score the reference, if there is one, and every candidate on the same tokens.

    targets: [n] the token that really follows each position.
    candidates, reference: [n, vocabulary] float32 logits, all of one shape; not changed.
    cutoff: the reference holds log-probabilities, taken as they are, and what is likely by no more
        than exp(-cutoff) is left out of sums over it: llama-perplexity's numbers, of its .kld
        files. Such a divergence can be negative, and the reverse one comes out too small.

    Returns scores in that order, the reference's first. Raises EngineError on shapes that do not
    agree. A token whose logits are not all finite gets NaN; see `broken`.
    """
    given = [*candidates] if reference is None else [reference, *candidates]
    shapes = {logits.shape for logits in given}
    if len(shapes) != 1 or given[0].shape[:1] != targets.shape:
        raise EngineError(f"cannot score {len(targets)} targets against logits of {shapes}")
    vocabulary = given[0].shape[1]
    rows = max(1, _BLOCK // vocabulary)
    buffers: SimpleQueue[_Buffers] = SimpleQueue()
    for _ in range(threads):
        first = _Softmax(rows, vocabulary) if cutoff is None else _Given(rows, vocabulary, cutoff)
        buffers.put((first, _Softmax(rows, vocabulary)))

    def scored(block: slice) -> list[Scores]:
        pair = buffers.get()
        found = _score_block(*pair, targets[block], [x[block] for x in given], reference)
        buffers.put(pair)
        return found

    blocks = [slice(start, start + rows) for start in range(0, len(targets), rows)]
    if threads == 1:
        parts: Iterable[list[Scores]] = map(scored, blocks)
        return tuple(Scores.join(part) for part in zip(*parts, strict=True))
    with ThreadPoolExecutor(threads) as pool:  # numpy lets go of the interpreter meanwhile
        parts = pool.map(scored, blocks)
        return tuple(Scores.join(part) for part in zip(*parts, strict=True))


def log_softmax(logits: NDArray[np.floating]) -> Floats:
    """ln of the softmax over the last axis, in float64: x - max - ln(sum exp(x - max))."""
    shifted: Floats = logits.astype(np.float64)
    shifted -= logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def broken(scores: Scores) -> int:
    """How many tokens could not be scored because a logit was NaN or infinite."""
    bad = ~np.isfinite(scores.nll)
    if scores.divergence is not None:
        bad |= ~np.isfinite(scores.divergence.kld)
    return int(bad.sum())


class _Softmax:
    """Buffers for a few rows: logits less their maximum, and the exponentials of that."""

    def __init__(self, rows: int, vocabulary: int) -> None:
        self._shifted = np.empty((rows, vocabulary), np.float32)
        self._exps = np.empty((rows, vocabulary), np.float32)

    def fill(self, logits: Logits) -> None:
        """Take the rows of logits [n <= rows, vocabulary]; a row with a non-finite one is NaN."""
        self.shifted, self.exps = self._shifted[: len(logits)], self._exps[: len(logits)]
        self.top = logits.argmax(axis=1)
        peak = np.take_along_axis(logits, self.top[:, None], axis=1)
        peak[~np.isfinite(peak[:, 0] + logits.min(axis=1))] = np.nan
        np.subtract(logits, peak, out=self.shifted)
        np.exp(self.shifted, out=self.exps)
        self.log_total = np.log(self.exps.sum(axis=1, dtype=np.float64))
        self.mass, self.least = np.float64(1), 0.0  # zero bounds a divergence but for rounding

    def log_p(self, targets: NDArray[np.int32]) -> Floats:
        """ln p(target) of each row: [n]."""
        picked = np.take_along_axis(self.shifted, targets[:, None].astype(np.int64), axis=1)
        return np.asarray(picked[:, 0] - self.log_total)

    def mean(self, values: Logits) -> Floats:
        """The mean of values [n, vocabulary] under each row's distribution: [n]."""
        sums = np.einsum("ij,ij->i", self.exps, values)
        return np.asarray(sums / np.exp(self.log_total))


class _Given(_Softmax):
    """The same of rows that are log-probabilities already, cut off: what is left has a mass."""

    def __init__(self, rows: int, vocabulary: int, cutoff: float) -> None:
        super().__init__(rows, vocabulary)
        self._cutoff = cutoff

    def fill(self, logits: Logits) -> None:
        """Take rows of log-probabilities [n <= rows, vocabulary]."""
        super().fill(logits)
        self.exps[logits <= -self._cutoff] = 0
        self.log_total = -logits.max(axis=1).astype(np.float64)
        self.mass = self.exps.sum(axis=1, dtype=np.float64) / np.exp(self.log_total)
        self.least = -np.inf


_Buffers = tuple[_Softmax, _Softmax]


def _score_block(
    first: _Softmax,
    other: _Softmax,
    targets: NDArray[np.int32],
    given: Sequence[Logits],
    reference: Logits | None,
) -> list[Scores]:
    """Scores of each array of logits on a few rows; the first is the reference if there is one."""
    first.fill(given[0])
    log_p = first.log_p(targets)
    scores = [Scores(-log_p, first.top == targets)]
    for logits in given[1:]:
        other.fill(logits)
        log_q = other.log_p(targets)
        delta_p = np.exp(log_q) - np.exp(log_p)
        divergence = None if reference is None else _diverge(first, other, delta_p)
        scores.append(Scores(-log_q, other.top == targets, divergence))
    return scores


def _diverge(reference: _Softmax, candidate: _Softmax, delta_p: Floats) -> Divergence:
    """KL(p || q) with p = exp(x)/s and q = exp(y)/t is mean_p(x - y) - ln s + ln t.

    Overwrites the candidate's buffer.
    """
    apart = np.subtract(reference.shifted, candidate.shifted, out=candidate.shifted)
    totals = reference.log_total - candidate.log_total
    kld = reference.mean(apart) - reference.mass * totals
    reverse, least = totals - candidate.mean(apart), reference.least
    same_top = reference.top == candidate.top
    return Divergence(np.maximum(kld, least), np.maximum(reverse, least), delta_p, same_top)


def _columns(parts: Sequence[Divergence]) -> list[list[Any]]:
    """For every field, its array in each part."""
    return [[getattr(part, field.name) for part in parts] for field in fields(Divergence)]
