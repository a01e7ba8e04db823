"""Intervals contain the truth as often as they say; llama.cpp's own would not."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.errors import UsageError
from gemcut.eval.intervals import Estimate, detectable, mean, quantiles, student


# Tables of Student's distribution.
@pytest.mark.parametrize(
    ("freedom", "wanted"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (10, 2.22814), (120, 1.97993)],
)
def test_students_quantiles(freedom, wanted):
    assert student(0.975, freedom) == pytest.approx(wanted, rel=1e-5)


def test_with_many_clusters_students_quantile_is_the_normal_one():
    assert student(0.975, 10**7) == pytest.approx(1.959964, rel=1e-5)
    assert student(0.995, 40) == pytest.approx(2.704459, rel=1e-5)


def clustered(random, count=40, length=30, between=1.0):
    """Values that share something within a row; their true mean is 1."""
    return 1 + between * random.normal(size=(count, 1)) + random.normal(size=(count, length))


def test_intervals_of_means_hold_95_times_of_100_where_those_of_tokens_do_not():
    random, own, tokens, runs = np.random.default_rng(5), 0, 0, 2000
    for _ in range(runs):
        values = clustered(random)
        found = mean(values, np.arange(len(values)))
        own += found.low <= 1 <= found.high
        tokens += abs(values.mean() - 1) <= 1.96 * values.std() / math.sqrt(values.size)

    assert 0.93 <= own / runs <= 0.97
    assert tokens / runs < 0.6


def test_clusters_of_several_chunks_and_of_different_size():
    """As documents are: chunks of one are alike."""
    random, hits, runs = np.random.default_rng(6), 0, 1000
    for _ in range(runs):
        lengths = random.integers(1, 6, 60)
        owners = np.repeat(np.arange(60), lengths)
        values = 1 + random.normal(size=60)[owners][:, None] + random.normal(size=(len(owners), 8))
        found = mean(values, owners * 7 + 3)  # numbered anyhow
        hits += found.low <= 1 <= found.high

    assert 0.92 <= hits / runs <= 0.98


def test_quantiles_are_those_of_all_tokens_within_their_intervals():
    random = np.random.default_rng(7)
    values = random.gamma(0.3, size=(200, 50))
    values[:5] *= 20  # a document that is unlike the others
    found = quantiles(values, np.arange(200) // 5, [0.5, 0.9, 0.999])

    for estimate, share in zip(found, [0.5, 0.9, 0.999], strict=True):
        assert estimate.value == pytest.approx(np.quantile(values, share))
        assert estimate.low <= estimate.value <= estimate.high
    assert found[2].error > found[0].error


def test_intervals_of_a_median_hold():
    random, hits, runs = np.random.default_rng(8), 0, 100
    truth = np.median(clustered(random, 20_000))
    for _ in range(runs):
        values = clustered(random)
        (found,) = quantiles(values, np.arange(len(values)), [0.5])
        hits += found.low <= truth <= found.high

    assert hits / runs >= 0.88


@given(st.integers(2, 30), st.integers(1, 20), st.integers(0, 999))
def test_clusters_of_one_chunk_are_the_spread_of_chunk_means(count, length, seed):
    values = np.random.default_rng(seed).normal(size=(count, length))
    means = values.mean(axis=1)

    found = mean(values, np.arange(count))

    assert found.value == pytest.approx(means.mean())
    assert found.error == pytest.approx(means.std(ddof=1) / math.sqrt(count))


def test_what_can_be_detected_is_found_four_times_of_five():
    random, seen, runs = np.random.default_rng(9), 0, 1000
    error = Estimate(0, math.sqrt((1 + 1 / 30) / 40), 0, 0)
    least = detectable(error, 40)
    for _ in range(runs):
        found = mean(clustered(random) - 1 + least, np.arange(40))
        seen += found.low > 0

    assert 0.76 <= seen / runs <= 0.84


def test_a_growing_function_takes_the_interval_along():
    found = Estimate(1.0, 0.1, 0.8, 1.2).over(np.exp)

    assert found.value == pytest.approx(math.e)
    assert (found.low, found.high) == pytest.approx((math.exp(0.8), math.exp(1.2)))
    assert found.error == pytest.approx(0.1 * math.e, rel=1e-4)


def test_one_cluster_has_no_error_bar():
    with pytest.raises(UsageError, match="one piece of text"):
        mean(np.ones((3, 4)), np.zeros(3, int))
