"""Whole clusters drawn again with replacement: how far an estimate would lie from the truth.

A resample is how often each cluster was drawn. So what it gives follows from the clusters' totals,
and tokens are never drawn. The same resamples serve whatever is computed from one text.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_SEED = 0
_BLOCK = 1 << 20  # numbers held at once, whatever the number of clusters

_BUCKETS = 256
_ROUNDING = 1e-5  # of errors that are roots of differences

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
Ranks = NDArray[np.intp]


def draws(n_clusters: int) -> Iterator[Floats]:
    """How often each resample drew each cluster: blocks [some, n_clusters]."""
    random = np.random.default_rng(_SEED)
    most = max(1, _BLOCK // n_clusters)
    for start in range(0, RESAMPLES, most):
        rows = min(most, RESAMPLES - start)
        drawn = random.integers(0, n_clusters, (rows, n_clusters))
        drawn += n_clusters * np.arange(rows)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=rows * n_clusters)
        yield counts.reshape(rows, n_clusters).astype(np.float64)


def linearised(totals: Floats, sizes: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Means of resamples and their errors, each [resamples, n_statistics].

    The error is that of a ratio of totals, to first order: with means m, totals t and sizes n of
    the G clusters that were drawn, sqrt(G / (G - 1) * sum((t - m n)^2)) / sum(n).

    Args:
        totals: [n_statistics, n_clusters], of values; sizes: [n_clusters], in tokens.
        counts: [resamples, n_clusters], how often each cluster was drawn.
    """
    clusters, tokens = len(sizes), (counts @ sizes)[:, None]
    means = counts @ totals.T / tokens
    squares = counts @ (totals**2).T - 2 * means * (counts @ (totals * sizes).T)
    squares += means**2 * (counts @ sizes**2)[:, None]
    scale = clusters / (clusters - 1)
    return means, np.sqrt(scale * np.maximum(squares, 0.0)) / tokens


def studentised(totals: Floats, sizes: Floats) -> Floats:
    """(Mean of a resample - mean) / error of the resample: [RESAMPLES, n_statistics].

    Zero, which says nothing, where a resample drew clusters that are all alike.
    """
    values = totals.sum(axis=1) / sizes.sum()
    # Around their mean, lest a small spread drown in rounding.
    centred = totals - values[:, None] * sizes
    parts = [linearised(centred, sizes, counts) for counts in draws(len(sizes))]
    means, errors = (np.concatenate(part) for part in zip(*parts, strict=True))
    spread = errors > _ROUNDING * errors.max(axis=0)
    return np.where(spread, means, 0.0) / np.where(spread, errors, 1.0)


def quantile_ranks(places: Places, n_clusters: int, shares: Sequence[float]) -> Ranks:
    """Where the quantiles of every resample are: ranks [RESAMPLES, n_shares] among all tokens.

    To draw clusters is to weigh each token by how often its cluster was drawn. The weights are
    added up over buckets of tokens first, and then only within the bucket that a quantile is in.

    Args:
        places: [n_tokens], the cluster of every token, in the order of the tokens' values.
    """
    width = -(-len(places) // _BUCKETS)
    cells = np.arange(len(places)) // width * n_clusters + places
    held = np.bincount(cells, minlength=_BUCKETS * n_clusters).reshape(_BUCKETS, n_clusters)
    up_to = held.cumsum(axis=0).astype(np.float64)
    blocks = [
        np.stack([_ranks(places, counts, counts @ up_to.T, share) for share in shares], axis=1)
        for counts in draws(n_clusters)
    ]
    return np.concatenate(blocks)


def _ranks(places: Places, counts: Floats, cumulated: Floats, share: float) -> Ranks:
    """The rank of one quantile in each resample: the first that such a share of weight lies up to.

    cumulated: [resamples, _BUCKETS], the weight up to the end of each bucket.
    """
    width = -(-len(places) // _BUCKETS)
    resamples, wanted = np.arange(len(counts))[:, None], share * cumulated[:, -1:]
    bucket = (cumulated < wanted).sum(axis=1, keepdims=True)
    before = np.where(bucket > 0, cumulated[resamples, bucket - 1], 0.0)
    tokens = np.minimum(bucket * width + np.arange(width), len(places) - 1)
    inside = before + np.cumsum(counts[resamples, places[tokens]], axis=1)
    ranks: Ranks = bucket[:, 0] * width + (inside < wanted).sum(axis=1)
    return np.minimum(ranks, len(places) - 1)
