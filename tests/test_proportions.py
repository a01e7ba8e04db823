"""Shares of items and changed answers, against published values."""

import pytest

from gemcut.errors import UsageError
from gemcut.eval.statistics.proportions import mcnemar, wilson


# Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_score_intervals_are_the_published_ones(hits, n, low, high):
    found = wilson(hits, n)

    assert found.value == hits / n
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    other = wilson(n - hits, n)
    assert (1 - other.high, 1 - other.low) == pytest.approx((found.low, found.high))


def test_no_interval_leaves_zero_and_one():
    assert wilson(0, 7).low == 0.0 and wilson(7, 7).high == 1.0


# Fagerland, Lydersen and Laake, "The McNemar test for binary matched-pairs data" (2013): airway
# hyper-responsiveness, and complete response; then by hand.
@pytest.mark.parametrize(
    ("lost", "gained", "wanted"),
    [(1, 7, 0.0703), (6, 16, 0.0525), (0, 5, 2 / 32), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_changed_answers_have_the_exact_chance(lost, gained, wanted):
    assert mcnemar(lost, gained) == pytest.approx(wanted, abs=5e-5)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_thousands_of_items_do_not_overflow():
    assert mcnemar(2000, 2000) == 1.0
    assert mcnemar(4900, 5100) == pytest.approx(0.0466, abs=5e-4)  # normal: 199 / 100 sigma
    assert 0 < mcnemar(0, 1000) < 1e-300


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="0 hits among 0 items"):
        wilson(0, 0)
    with pytest.raises(UsageError, match="3 hits among 2"):
        wilson(3, 2)
    with pytest.raises(UsageError, match="-1 items lost"):
        mcnemar(-1, 2)
