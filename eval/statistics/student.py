"""Student's t distribution for whole degrees of freedom.

Its distribution function is then a finite sum: Abramowitz and Stegun, "Handbook of Mathematical
Functions" (1964), 26.7.3 and 26.7.4.
"""

import math
from functools import lru_cache

from gemcut.errors import UsageError


def chance(t: float, freedom: int) -> float:
    """The probability of a value at least as far from zero, on either side.

    Raises:
        UsageError: no degree of freedom: one cluster has no spread.
    """
    if freedom < 1:
        raise UsageError("one piece of text has no error bar: score a longer text, or several")
    if not math.isfinite(t):
        return 0.0
    angle = math.atan2(abs(t), math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    inside = math.sin(angle) * total
    return max(0.0, 1 - (2 / math.pi * (angle + inside) if odd else inside))


@lru_cache(maxsize=256)
def quantile(share: float, freedom: int) -> float:
    """The value that such a share of the distribution lies below, for shares above a half.

    Raises:
        UsageError: no degree of freedom, as above.
    """
    beyond, low, high = 2 * (1 - share), 0.0, 1.0
    while chance(high, freedom) > beyond:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if chance(middle, freedom) > beyond else (low, middle)
    return high
