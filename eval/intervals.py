"""Estimates with 95 % intervals, from one number per scored token.

Tokens of one chunk, and chunks of one document, share their text and are not independent. So the
unit of every error bar is the cluster: a document where the text has several, else a chunk (Miller,
"Adding Error Bars to Evals", arXiv 2411.00640). Means get cluster-robust errors and Student's
quantile; quantiles of tokens, whose sampling distribution is not normal, a bootstrap of clusters.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from gemcut.errors import UsageError

CONFIDENCE = 0.95
_RESAMPLES = 1000
_SEED = 0

Values = NDArray[np.floating | np.bool_]  # [n_chunks, n]
Clusters = NDArray[np.integer]  # [n_chunks], the number of each chunk's cluster


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error (one sigma), and the ends of its 95 % interval."""

    value: float
    error: float
    low: float
    high: float

    def times(self, factor: float) -> "Estimate":
        """The same in another unit."""
        return Estimate(*(factor * each for each in (self.value, self.error, self.low, self.high)))

    def over(self, function: Callable[[float], float]) -> "Estimate":
        """A growing function of it: ends move along, the error to first order."""
        value, low, high = (float(function(x)) for x in (self.value, self.low, self.high))
        step = 1e-6 * max(1.0, abs(self.value))
        slope = (float(function(self.value + step)) - value) / step
        return Estimate(value, abs(slope) * self.error, low, high)


def mean(values: Values, clusters: Clusters) -> Estimate:
    """The mean of values over all tokens.

    Its error is the jackknife's, which leaves out one cluster at a time: of few clusters of
    different size the linearised error of a ratio is too small (MacKinnon, Nielsen and Webb, "Fast
    and reliable jackknife and bootstrap methods for cluster-robust inference", 2023).

    Raises:
        UsageError: fewer than two clusters.
    """
    totals, sizes = _totals(values, clusters)
    value = float(totals.sum() / sizes.sum())
    error = _error(totals, sizes)
    reach = student((1 + CONFIDENCE) / 2, len(totals) - 1) * error
    return Estimate(value, error, value - reach, value + reach)


def quantiles(values: Values, clusters: Clusters, shares: Sequence[float]) -> list[Estimate]:
    """Quantiles over all tokens, each with the percentile interval of a bootstrap of clusters.

    Every resample draws whole clusters, which is to weigh each token by how often its cluster was
    drawn: the values are sorted once.

    Raises:
        UsageError: fewer than two clusters.
    """
    numbers, owners = _numbered(clusters)
    of_token = np.repeat(owners, values.shape[1])
    order = np.argsort(values, axis=None)
    ordered, of_token = values.reshape(-1)[order], of_token[order]
    random = np.random.default_rng(_SEED)
    drawn = np.empty((_RESAMPLES, len(shares)))
    for row in drawn:
        counts = np.bincount(random.integers(0, numbers, numbers), minlength=numbers)
        cumulated = np.cumsum(counts[of_token])
        at = np.searchsorted(cumulated, np.asarray(shares) * cumulated[-1])
        row[:] = ordered[np.minimum(at, len(ordered) - 1)]
    tail = (1 - CONFIDENCE) / 2
    lows, highs = np.quantile(drawn, [tail, 1 - tail], axis=0)
    found = np.quantile(values, shares)
    columns = zip(found, drawn.std(axis=0, ddof=1), lows, highs, strict=True)
    return [Estimate(*map(float, column)) for column in columns]


def detectable(difference: Estimate, n_clusters: int, power: float = 0.8) -> float:
    """The smallest true difference that a text like this one would show with such a power.

    (Student's quantile + the normal quantile of the power) standard errors of the paired
    difference; see Miller, section 5.
    """
    level = student((1 + CONFIDENCE) / 2, n_clusters - 1)
    return (level + NormalDist().inv_cdf(power)) * difference.error


def student(share: float, freedom: int) -> float:
    """The quantile of Student's t with so many degrees of freedom, for shares above a half.

    Hill, "Algorithm 396: Student's t-quantiles", Communications of the ACM 13 (1970); exact for
    one and two degrees of freedom, else to about six digits.

    Raises:
        UsageError: no degree of freedom: one cluster has no spread.
    """
    if freedom < 1:
        raise UsageError("one piece of text has no error bar: score a longer text, or several")
    both = 2 * (1 - share)
    if freedom == 1:
        return 1 / math.tan(both * math.pi / 2)
    if freedom == 2:
        return math.sqrt(2 / (both * (2 - both)) - 2)
    a = 1 / (freedom - 0.5)
    b = (48 / a) / a
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * freedom
    y = (d * both) ** (2 / freedom)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(both / 2)
        y = x * x
        if freedom < 5:
            c += 0.3 * (freedom - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y * y)
    else:
        tail = 1 / (((freedom + 6) / (freedom * y) - 0.089 * d - 0.822) * (freedom + 2) * 3)
        y = ((tail + 0.5 / (freedom + 4)) * y - 1) * (freedom + 1) / (freedom + 2) + 1 / y
    return math.sqrt(freedom * y)


def _error(totals: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """The delete-one-cluster jackknife of a ratio of totals."""
    count = len(totals)
    if count < 2:
        return math.inf
    without = (totals.sum() - totals) / (sizes.sum() - sizes)
    return math.sqrt((count - 1) * float(without.var()))


def _totals(values: Values, clusters: Clusters) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of values of every cluster."""
    numbers, owners = _numbered(clusters)
    sums = values.sum(axis=1, dtype=np.float64)
    lengths = np.full(len(values), values.shape[1], np.float64)
    totals, sizes = (np.bincount(owners, each, numbers) for each in (sums, lengths))
    return totals.astype(np.float64), sizes.astype(np.float64)


def _numbered(clusters: Clusters) -> tuple[int, NDArray[np.intp]]:
    """How many clusters there are, and the place of every chunk's among them."""
    found, owners = np.unique(clusters, return_inverse=True)
    return len(found), owners
