"""What a model says about a text, kept compactly, and how far a changed one has moved from it.

The logits of a few thousand positions are gigabytes where the vocabulary has 262,144 tokens. Kept
are the likeliest tokens' log-probabilities, and the others' as one: the KL divergence of that
coarser distribution is never larger than the true one (the data processing inequality), and smaller
by about the share of it that the others have, a few percent at most.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gemcut.score import Floats, Logits, log_softmax

KEPT = 4096  # tokens; with ids and log-probabilities 32 KiB per position
_BLOCK = 1 << 17  # logits
_LEAST = 1e-30  # what is left for the others where the kept ones have everything


class Reference:
    """The unchanged model's distributions at some positions."""

    def __init__(self, logits: Logits, kept: int = KEPT) -> None:
        """Keep what logits [n, vocabulary] say."""
        self._ids: NDArray[np.int32] | None
        if kept < logits.shape[1]:
            parts = [np.argpartition(rows, -kept)[:, -kept:] for rows in _blocks(logits)]
            self._ids = np.concatenate([part.astype(np.int32) for part in parts])
        else:
            self._ids = None
        self._log_p = np.concatenate([part.astype(np.float32) for part in self._coarse(logits)])

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return self._log_p.nbytes + (0 if self._ids is None else self._ids.nbytes)

    def divergence(self, logits: Logits) -> Floats:
        """KL(reference || changed model) of each position in nats: [n]; NaN for broken logits."""
        parts, start = [], 0
        for log_q in self._coarse(logits):
            log_p = self._log_p[start : start + len(log_q)].astype(np.float64)
            parts.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
            start += len(log_q)
        kld: Floats = np.maximum(np.concatenate(parts), 0.0)  # rounding alone makes it negative
        return kld

    def _coarse(self, logits: Logits) -> Iterator[Floats]:
        """Log-probabilities of the kept tokens and of all others together, a few rows at a time."""
        start = 0
        for rows in _blocks(logits):
            log_p = log_softmax(rows)
            stop = start + len(rows)
            yield log_p if self._ids is None else _gather(log_p, self._ids[start:stop])
            start = stop


def size(positions: int, vocabulary: int, kept: int = KEPT) -> int:
    """Bytes that the reference of so many positions takes."""
    return positions * (4 * vocabulary if vocabulary <= kept else 8 * kept + 4)


def _blocks(logits: Logits) -> Iterator[Logits]:
    """A few rows at a time: what is made of them takes several times their memory."""
    rows = max(1, _BLOCK // logits.shape[1])
    return (logits[start : start + rows] for start in range(0, len(logits), rows))


def _gather(log_p: Floats, ids: NDArray[np.int32]) -> Floats:
    top = np.take_along_axis(log_p, ids.astype(np.int64), axis=1)
    rest = np.maximum(1 - np.exp(top).sum(axis=1, keepdims=True), _LEAST)
    return np.concatenate([top, np.log(rest)], axis=1)
