"""Estimates with 95 % intervals, from one number per scored token.

Tokens of one chunk, and chunks of one document, share their text and are not independent. So the
unit of every error bar is the cluster: a document where the text has several, else a chunk (Miller,
"Adding Error Bars to Evals", arXiv 2411.00640). Means get cluster-robust errors and intervals that
follow the skew of the clusters; quantiles of tokens, whose sampling distribution is not normal, the
bootstrap of clusters. What one cluster gives has no interval: an infinite error, and infinite ends.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from gemcut.eval.statistics import student
from gemcut.eval.statistics.resampling import Floats, Places, quantile_ranks, studentised

CONFIDENCE = 0.95
# From so many clusters on resamples without any spread, which are G^(1 - G) of all, are far fewer
# than the interval leaves out; below, the bootstrap's ends are made of them.
FEWEST_RESAMPLED = 5

Values = NDArray[np.floating | np.bool_]  # [n_tokens]
Clusters = NDArray[np.integer]  # [n_tokens], the number of each token's cluster, from 0 on


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error (one sigma), and the ends of its 95 % interval."""

    value: float
    error: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """False of a single cluster, whose error is infinite."""
        return math.isfinite(self.error)

    def times(self, factor: float) -> "Estimate":
        """The same in another unit."""
        return Estimate(*(factor * each for each in (self.value, self.error, self.low, self.high)))

    def over(self, function: Callable[[float], float]) -> "Estimate":
        """A growing function of it: ends move along, the error to first order."""
        step = 1e-6 * (abs(self.value) or 1.0)
        points = self.value, self.low, self.high, self.value + step
        with np.errstate(over="ignore"):  # of a damaged file: then it is infinite
            value, low, high, beyond = (float(function(x)) for x in points)
        slope = (beyond - value) / step
        return Estimate(value, abs(slope) * self.error, low, high)

    def within(self, least: float, most: float = math.inf) -> "Estimate":
        """With the ends where values can be."""
        return Estimate(self.value, self.error, max(least, self.low), min(most, self.high))


def mean(values: Values, owners: Clusters) -> Estimate:
    """The mean of values over all tokens; see `estimates`."""
    return estimates(*totals([values], owners))[0]


def estimates(totals: Floats, sizes: Floats) -> list[Estimate]:
    """Means over all tokens, from totals [n_statistics, n_clusters] and sizes [n_clusters].

    Errors are the jackknife's, which leaves out one cluster at a time: of few clusters of different
    size the linearised error of a ratio is too small (MacKinnon, Nielsen and Webb, "Fast and
    reliable jackknife and bootstrap methods for cluster-robust inference", 2023).

    Each end of an interval is the further one of two. Student's t is symmetric, where divergences
    are skewed: a few documents hold most of the divergence, and a text without them is too sure of
    too small a mean. The bootstrap-t (Efron, 1981; Hall, "Theoretical comparison of bootstrap
    confidence intervals", 1988) reaches further on that side. It also draws the other end nearer,
    but on skew as seen in few clusters; there Student's end stands. Where one cluster holds all,
    resamples without it reach anywhere: no end is further than of one degree of freedom.
    """
    values, errors = totals.sum(axis=1) / sizes.sum(), _errors(totals, sizes)
    if len(sizes) < 2:
        return [Estimate(value, math.inf, -math.inf, math.inf) for value in values.tolist()]
    share = (1 + CONFIDENCE) / 2
    least, most = (student.quantile(share, freedom) for freedom in (len(sizes) - 1, 1))
    lows, highs = np.full_like(values, least), np.full_like(values, least)
    if len(sizes) >= FEWEST_RESAMPLED:
        ends = np.quantile(studentised(totals, sizes), [1 - share, share], axis=0)
        highs, lows = np.clip(ends * [[-1], [1]], least, most)
    columns = values, errors, values - lows * errors, values + highs * errors
    return [Estimate(*map(float, column)) for column in zip(*columns, strict=True)]


def quantiles(values: Values, owners: Clusters, shares: Sequence[float]) -> list[Estimate]:
    """Quantiles over all tokens, each with the percentile interval of a bootstrap of clusters."""
    found = np.quantile(values, shares)
    n_clusters, places = _numbered(owners)
    if n_clusters < 2:
        return [Estimate(value, math.inf, -math.inf, math.inf) for value in found.tolist()]
    order = np.argsort(values)
    drawn = values[order][quantile_ranks(places[order], n_clusters, shares)]
    tail = (1 - CONFIDENCE) / 2
    lows, highs = np.quantile(drawn, [tail, 1 - tail], axis=0)
    columns = zip(found, drawn.std(axis=0, ddof=1), lows, highs, strict=True)
    return [Estimate(*map(float, column)) for column in columns]


def detectable(error: float, n_clusters: int, power: float = 0.8, n_tests: int = 1) -> float:
    """The smallest true difference that a text like this one would show with such a power.

    (Student's quantile + the normal quantile of the power) standard errors of the paired
    difference; see Miller, section 5. Of many tests together the quantile is further out.
    """
    level = student.quantile(1 - (1 - CONFIDENCE) / 2 / n_tests, n_clusters - 1)
    return (level + NormalDist().inv_cdf(power)) * error


def totals(columns: Sequence[Values], owners: Clusters) -> tuple[Floats, Floats]:
    """Every column's sum over each cluster [n_columns, n_clusters], and the tokens of each."""
    n_clusters, places = _numbered(owners)
    sums = np.array([np.bincount(places, values, n_clusters) for values in columns])
    return sums, np.bincount(places, minlength=n_clusters).astype(np.float64)


def _errors(totals: Floats, sizes: Floats) -> Floats:
    """The delete-one-cluster jackknife of ratios of totals; infinite of one cluster."""
    count = len(sizes)
    if count < 2:
        return np.full(len(totals), math.inf)
    without = (totals.sum(axis=1, keepdims=True) - totals) / (sizes.sum() - sizes)
    errors: Floats = np.sqrt((count - 1) * without.var(axis=1))
    return errors


def _numbered(owners: Clusters) -> tuple[int, Places]:
    """How many clusters there are, and the place of every token's among them."""
    present = np.bincount(owners) > 0
    return int(present.sum()), (np.cumsum(present) - 1)[owners]
