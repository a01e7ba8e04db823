"""Student's distribution, against its tables."""

import math

import pytest

from gemcut.errors import UsageError
from gemcut.eval.statistics.student import chance, quantile


# Abramowitz and Stegun, table 26.10.
@pytest.mark.parametrize(
    ("freedom", "wanted"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_quantiles(freedom, wanted):
    assert quantile(0.975, freedom) == pytest.approx(wanted, abs=6e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 120, 1001])
@pytest.mark.parametrize("share", [0.6, 0.975, 0.9999])
def test_a_quantile_is_where_the_chance_beyond_is_what_is_left(freedom, share):
    assert chance(quantile(share, freedom), freedom) == pytest.approx(2 * (1 - share), rel=1e-9)


def test_chances():
    """Of one and two degrees of freedom in closed form; of many, the normal distribution's."""
    assert chance(1.0, 1) == pytest.approx(0.5)
    assert chance(-2.0, 2) == pytest.approx(1 - 2 / math.sqrt(6))
    assert chance(0.0, 5) == 1.0 and chance(math.inf, 5) == 0.0
    assert chance(1.959964, 20_000) == pytest.approx(0.05, abs=1e-4)


def test_one_cluster_has_no_distribution():
    with pytest.raises(UsageError, match="one piece of text"):
        quantile(0.975, 0)
