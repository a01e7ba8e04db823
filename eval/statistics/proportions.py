"""Shares of items that are right, and whether two files differ on the same items.

For tasks, whose items are independent questions; tokens of a text are not (see `intervals`).
"""

import math
from statistics import NormalDist

from gemcut.errors import UsageError
from gemcut.eval.statistics.intervals import CONFIDENCE, Estimate


def wilson(hits: int, n: int) -> Estimate:
    """The share of hits among n items with its score interval.

    It stays within 0 and 1 and is right for few items and extreme shares, where the share plus or
    minus two errors is not (Wilson, "Probable inference, the law of succession, and statistical
    inference", 1927; Newcombe, Statistics in Medicine 17, 1998, method 3).

    Raises:
        UsageError: no item, or more hits than items.
    """
    if n < 1 or not 0 <= hits <= n:
        raise UsageError(f"{hits} hits among {n} items: wanted at least one item, and no more hits")
    share, z = hits / n, NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    shrunk = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrunk
    reach = z / shrunk * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low = centre - reach if hits else 0.0
    high = centre + reach if hits < n else 1.0
    return Estimate(share, math.sqrt(share * (1 - share) / n), low, high)


def mcnemar(lost: int, gained: int) -> float:
    """The chance that items change as unevenly as this, or more, if both files were equally good.

    Of the items that one file has right and the other wrong, each is then as likely to be lost as
    gained: the exact binomial test of McNemar's table, both sides (McNemar, 1947).

    Raises:
        UsageError: a negative number of items.
    """
    if min(lost, gained) < 0:
        raise UsageError(f"{lost} items lost and {gained} gained: wanted numbers from 0 on")
    changed = lost + gained
    ways = total = 1
    for k in range(min(lost, gained)):
        ways = ways * (changed - k) // (k + 1)
        total += ways
    return min(1.0, 2 * total / (1 << changed))
