"""Which files can be told apart: paired differences of all pairs, and letters for those that tie.

Two files are held against each other on the same tokens, so what the text does to both drops out.
Many pairs are tested at once, so the 5 % is for all of them together (Holm, "A simple sequentially
rejective multiple test procedure", 1979).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, count
from statistics import median

import numpy as np

from gemcut.eval.statistics import student
from gemcut.eval.statistics.intervals import (
    CONFIDENCE,
    FEWEST_RESAMPLED,
    Clusters,
    Estimate,
    Values,
    detectable,
    estimates,
    totals,
)
from gemcut.eval.statistics.resampling import Floats, studentised


@dataclass(frozen=True)
class Pair:
    """Two columns, by number, and what the second has more than the first.

    difference: of their means, with the 95 % interval of this pair alone.
    p_value: corrected for all pairs; below 5 % they can be told apart.
    """

    first: int
    second: int
    difference: Estimate
    p_value: float

    @property
    def apart(self) -> bool:
        """Whether they can be told apart."""
        return self.p_value < 1 - CONFIDENCE


def pairs(columns: Sequence[Values], owners: Clusters) -> list[Pair]:
    """Every pair of columns [n_tokens] of values on the same tokens."""
    chosen = list(combinations(range(len(columns)), 2))
    if not chosen:
        return []
    sums, sizes = totals(columns, owners)
    apart = np.array([sums[j] - sums[i] for i, j in chosen])
    differences = estimates(apart, sizes)
    p_values = holm(_p_values(apart, sizes, differences))
    return [Pair(*ij, d, p) for ij, d, p in zip(chosen, differences, p_values, strict=True)]


def tie_letters(columns: Sequence[Values], found: Sequence[Pair]) -> list[str]:
    """Letters for every column; those that share one cannot be told apart.

    The column with the least mean has an "a".

    Args:
        found: the columns' `pairs`.
    """
    ranked = sorted(range(len(columns)), key=lambda i: float(columns[i].mean()))
    rank = {column: place for place, column in enumerate(ranked)}
    apart = [(rank[p.first], rank[p.second]) for p in found if p.apart]
    letters = compact_letters(len(columns), apart)
    return [letters[rank[column]] for column in range(len(columns))]


def detectable_between(found: Sequence[Pair], owners: Clusters) -> float | None:
    """The difference of two means that this text would show in 4 of 5 cases, of a median pair.

    It is that of the pair that is tested first, which all pairs make stricter: with six files of
    few clusters twice that of two. None where there is no pair, or one cluster.
    """
    n_clusters = len(np.unique(owners))
    if not found or n_clusters < 2:
        return None
    error = median(pair.difference.error for pair in found)
    return detectable(error, n_clusters, n_tests=len(found))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: the k-th smallest of m times m - k + 1, and growing."""
    corrected, least = [0.0] * len(p_values), 0.0
    for k, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - k) * p_values[i]))
        corrected[i] = least
    return corrected


def compact_letters(n: int, apart: Sequence[tuple[int, int]]) -> list[str]:
    """Letters for numbers below n, such that two share one unless they are apart.

    Insert and absorb: a set that holds two which are apart is split into one without either, and
    sets within others are dropped (Piepho, "An algorithm for a letter-based representation of
    all-pairwise comparisons", 2004). Sets are lettered in the order of their members.
    """
    groups = [frozenset(range(n))]
    for i, j in apart:
        split = [g - {x} for g in groups for x in ((i, j) if {i, j} <= g else (n,))]
        groups = [g for g in dict.fromkeys(split) if not any(g < other for other in split)]
    ordered = sorted(groups, key=sorted)
    named = list(zip(filter(str.isalpha, map(chr, count(ord("a")))), ordered, strict=False))
    return ["".join(letter for letter, group in named if i in group) for i in range(n)]


def _p_values(apart: Floats, sizes: Floats, differences: Sequence[Estimate]) -> list[float]:
    """The chance of so large a difference by the text alone: where its interval would reach zero.

    As for intervals, the larger one of Student's and the bootstrap-t's, which is at most that of
    one degree of freedom. Where no resample goes so far, the bootstrap is at its resolution, and
    Student's alone counts.
    """
    freedom = len(sizes) - 1
    if not freedom:
        return [1.0] * len(differences)
    errors = np.array([each.error for each in differences])
    values = np.array([each.value for each in differences])
    ratios = values / np.where(errors > 0, errors, 1.0)
    ratios[(errors == 0) & (values != 0)] = np.inf
    least, most = ([student.chance(t, f) for t in ratios.tolist()] for f in (freedom, 1))
    if len(sizes) < FEWEST_RESAMPLED:
        return least
    resampled = studentised(apart, sizes)
    beyond = np.where(ratios > 0, resampled >= ratios, resampled <= ratios).mean(axis=0)
    p_values: list[float] = np.clip(2 * beyond, least, most).tolist()
    return p_values
