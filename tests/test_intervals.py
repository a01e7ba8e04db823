"""Intervals contain the truth as often as they say; llama.cpp's own would not."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.eval.statistics import student
from gemcut.eval.statistics.intervals import Estimate, detectable, estimates, mean, quantiles
from gemcut.eval.statistics.resampling import RESAMPLES, draws, quantile_ranks


def clustered(random, count=40, length=30, between=1.0):
    """Values that share something within a cluster, and their owners; their true mean is 1."""
    owners = np.repeat(np.arange(count), length)
    shared = 1 + between * random.normal(size=count)
    return shared[owners] + random.normal(size=len(owners)), owners


def of_clusters(means, sizes):
    """Estimates of clusters that are constant inside."""
    return estimates(np.array([means * sizes]), np.asarray(sizes, float))[0]


def test_intervals_of_means_hold_95_times_of_100_where_those_of_tokens_do_not():
    random, own, tokens, runs = np.random.default_rng(5), 0, 0, 600
    for _ in range(runs):
        values, owners = clustered(random)
        found = mean(values, owners)
        own += found.low <= 1 <= found.high
        tokens += abs(values.mean() - 1) <= 1.96 * values.std() / math.sqrt(values.size)

    assert 0.93 <= own / runs <= 0.97
    assert tokens / runs < 0.6


def test_clusters_of_different_size():
    """As documents are."""
    random, hits, runs = np.random.default_rng(6), 0, 400
    for _ in range(runs):
        lengths = 8 * random.integers(1, 6, 60)
        owners = np.repeat(np.arange(60), lengths)
        values = 1 + random.normal(size=60)[owners] + random.normal(size=len(owners))
        found = mean(values, owners * 7 + 3)  # numbered anyhow
        hits += found.low <= 1 <= found.high

    assert 0.92 <= hits / runs <= 0.98


def test_quantiles_are_those_of_all_tokens_within_their_intervals():
    random = np.random.default_rng(7)
    values = random.gamma(0.3, size=10_000)
    values[:250] *= 20  # a document that is unlike the others
    found = quantiles(values, np.arange(10_000) // 250, [0.5, 0.9, 0.999])

    for estimate, share in zip(found, [0.5, 0.9, 0.999], strict=True):
        assert estimate.value == pytest.approx(np.quantile(values, share))
        assert estimate.low <= estimate.value <= estimate.high
    assert found[2].error > found[0].error


def test_intervals_of_a_median_hold():
    random, hits, runs = np.random.default_rng(8), 0, 100
    truth = np.median(clustered(random, 20_000)[0])
    for _ in range(runs):
        values, owners = clustered(random)
        (found,) = quantiles(values, owners, [0.5])
        hits += found.low <= truth <= found.high

    assert hits / runs >= 0.88


@given(st.integers(2, 30), st.integers(1, 20), st.integers(0, 999))
def test_clusters_of_one_size_have_the_error_of_their_means(count, length, seed):
    values = np.random.default_rng(seed).normal(size=(count, length))
    means = values.mean(axis=1)

    found = mean(values.reshape(-1), np.repeat(np.arange(count), length))

    assert found.value == pytest.approx(means.mean())
    assert found.error == pytest.approx(means.std(ddof=1) / math.sqrt(count))


@pytest.mark.parametrize("count", [15, 30, 100])
@pytest.mark.parametrize("kind", ["lognormal", "gamma"])
def test_intervals_of_skewed_clusters_of_different_size_hold_where_students_do_not(kind, count):
    """As documents are: a few hold most of the divergence. The truth is 1."""
    random, ours, students, runs = np.random.default_rng(count), 0, 0, 300
    for _ in range(runs):
        sizes = np.exp(0.5 * random.normal(size=count))
        draw = {
            "lognormal": np.exp(random.normal(-0.5, 1, count)),
            "gamma": random.gamma(0.5, 2, count),
        }
        found = of_clusters(draw[kind], sizes)
        ours += found.low <= 1 <= found.high
        reach = student.quantile(0.975, count - 1) * found.error
        students += abs(found.value - 1) <= reach

    assert students < ours and ours / runs >= 0.89


@pytest.mark.parametrize("count", range(2, 9))
def test_few_clusters_give_wide_intervals_that_are_never_narrower_than_students(count):
    random = np.random.default_rng(count)
    for _ in range(50):
        found = of_clusters(random.gamma(0.5, 2, count), random.integers(100, 1000, count))
        reach = student.quantile(0.975, count - 1) * found.error

        assert found.high - found.value >= 0.999999 * reach
        assert found.value - found.low >= 0.999999 * reach
        assert np.isfinite([found.low, found.high]).all() and found.has_interval


def test_what_happens_in_one_cluster_alone_has_an_interval():
    """Most resamples do not draw it, and then have no spread."""
    found = of_clusters(np.eye(1, 40)[0], np.ones(40))

    assert (found.value, found.error) == pytest.approx((1 / 40, 1 / 40))
    assert found.low < 0 < 2 * found.value < found.high < 4 * found.value


def test_one_cluster_that_outweighs_all_others_makes_an_interval_wide_but_not_endless():
    random = np.random.default_rng(4)
    means = 1e-3 * random.random(15)
    means[3] = 1.0
    found = of_clusters(means, np.ones(15))

    assert 5 * found.value < found.high <= found.value + 12.8 * found.error


def test_values_that_are_all_alike_have_no_error():
    found = mean(np.full(60, 0.1), np.arange(60) // 4)

    assert (found.low, found.value, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.error == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 999), st.integers(2, 9), st.integers(1, 400), st.sampled_from([1, 3, 10**6]))
def test_quantiles_of_resamples_are_those_of_tokens_drawn_with_their_clusters(
    seed, n, tokens, kinds
):
    random = np.random.default_rng(seed)
    owners = np.concatenate([np.arange(n), random.integers(0, n, tokens)])
    values = random.integers(0, kinds, len(owners)).astype(float)
    order = np.argsort(values)
    shares = [0.0, 0.5, 0.9, 0.999, 1.0]

    ranks = quantile_ranks(owners[order], n, shares)

    for counts, found in list(zip(np.concatenate([*draws(n)]), ranks, strict=True))[:5]:
        drawn = np.repeat(values[order], counts[owners[order]].astype(int))
        wanted = np.quantile(drawn, shares, method="inverted_cdf")
        assert values[order][found][1:].tolist() == wanted[1:].tolist()


def test_resamples_draw_as_many_clusters_as_there_are_and_are_always_the_same():
    """In blocks of some million numbers, so that many clusters need no more memory."""
    blocks = list(draws(3000))

    assert sum(len(block) for block in blocks) == RESAMPLES and len(blocks) > 1
    assert all((block.sum(axis=1) == 3000).all() and block.size <= 1 << 20 for block in blocks)
    assert (np.concatenate(blocks) == np.concatenate(list(draws(3000)))).all()


def test_what_can_be_detected_is_found_four_times_of_five():
    random, seen, runs = np.random.default_rng(9), 0, 500
    least = detectable(math.sqrt((1 + 1 / 30) / 40), 40)
    for _ in range(runs):
        values, owners = clustered(random)
        found = mean(values - 1 + least, owners)
        seen += found.low > 0

    assert 0.76 <= seen / runs <= 0.84


def test_a_growing_function_takes_the_interval_along():
    found = Estimate(1.0, 0.1, 0.8, 1.2).over(np.exp)

    assert found.value == pytest.approx(math.e)
    assert (found.low, found.high) == pytest.approx((math.exp(0.8), math.exp(1.2)))
    assert found.error == pytest.approx(0.1 * math.e, rel=1e-4)


def test_ends_stay_where_values_can_be():
    found = Estimate(0.98, 0.03, 0.92, 1.04).within(0.0, 1.0)

    assert (found.value, found.low, found.high) == (0.98, 0.92, 1.0)
    assert Estimate(0.1, 0.1, -0.1, 0.3).within(0.0).low == 0.0


def test_one_cluster_has_a_value_and_no_interval():
    values, owners = np.arange(12.0), np.full(12, 7)

    for found in (mean(values, owners), *quantiles(values, owners, [0.5])):
        assert found.value == 5.5 and not found.has_interval
        assert (found.error, found.low, found.high) == (math.inf, -math.inf, math.inf)
    assert not mean(values, owners).over(np.exp).has_interval
