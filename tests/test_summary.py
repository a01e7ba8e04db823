"""What one file's scores come to: every number by its definition, with clustered intervals."""

import numpy as np
import pytest

from gemcut.eval.statistics.summary import summarise
from gemcut.score import Divergence, Scores


def test_errors_are_clustered():
    """Clusters that are constant inside tell as much as one number each."""
    values = np.repeat([1.0, 2.0, 3.0], 50)

    summary = summarise(Scores(values, values < 1), np.repeat(np.arange(3), 50), np.full(150, 2))

    assert summary.perplexity.value == pytest.approx(np.exp(2))
    assert summary.perplexity_error_independent < summary.perplexity.error / 5
    assert summary.bits_per_byte.value == pytest.approx(2 / np.log(2) / 2)
    assert summary.bits_per_byte.error == pytest.approx(1 / np.sqrt(3) / np.log(2) / 2)


def test_every_comparison_with_a_reference_follows_its_definition():
    random = np.random.default_rng(3)
    nll, other = random.gamma(2, size=(2, 240))
    right, wrong = random.random((2, 240)) < 0.5
    kld, reverse, delta = random.gamma(0.3, size=(3, 240))
    divergence = Divergence(kld, reverse, delta - 0.3, right == wrong)
    owners = np.repeat(np.arange(6), 40)

    found = summarise(Scores(other, wrong, divergence), owners, np.ones(240), Scores(nll, right))

    values = {
        "log_ratio": (other - nll).mean(),
        "kld": kld.mean(),
        "reverse": reverse.mean(),
        "same_top": (right == wrong).mean(),
        "lost": (right & ~wrong).mean(),
        "gained": (wrong & ~right).mean(),
        "rms_delta_p": np.sqrt(((delta - 0.3) ** 2).mean()),
    }
    for name, value in values.items():
        estimate = getattr(found, name)
        assert estimate.value == pytest.approx(value), name
        assert estimate.low < estimate.value < estimate.high and estimate.error > 0
    assert {share: tail.value for share, tail in found.tails.items()} == pytest.approx(
        {share: np.quantile(kld, share) for share in (0.5, 0.9, 0.99, 0.999)}
    )


def test_shares_and_divergences_have_intervals_where_they_can_be():
    """What happens once in some clusters and not in others could be never, not less than that."""
    nothing, once = np.zeros(200), np.arange(200) == 7
    kld = np.where(once, 1.0, 1e-4)
    scores = Scores(nothing, once, Divergence(kld, kld, nothing, ~once))

    found = summarise(scores, np.arange(200) // 10, np.ones(200), Scores(nothing, nothing > 0))

    assert found.kld.low == found.reverse.low == found.gained.low == 0.0
    assert found.same_top.high == 1.0 and found.same_top.low < 0.995
    assert found.lost.low == 0.0 and 0 < found.lost.high < 0.03  # never, of 200 tokens


def test_bits_per_byte_are_a_ratio_with_the_error_of_one():
    """Long tokens are hard ones: of a byte much less is unsure than of a token."""
    n_bytes = np.repeat([2.0, 3.0, 4.0, 7.0], 50)
    nll = np.log(2) * n_bytes * np.repeat([1.01, 0.99, 1.0, 1.01], 50)

    found = summarise(Scores(nll, nll < 1), np.repeat(np.arange(4), 50), n_bytes).bits_per_byte

    assert found.value == pytest.approx(nll.sum() / np.log(2) / n_bytes.sum())
    assert 0 < found.error < 0.01 < found.value / 10


@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.1])
def test_the_error_of_a_root_is_right_however_small_it_is(size):
    nothing, owners = np.zeros(60), np.repeat(np.arange(6), 10)
    delta = size * np.repeat([1.0, 1.1, 1.2, 0.9, 1.0, 1.3], 10)
    scores = Scores(nothing, nothing > 0, Divergence(nothing, nothing, delta, nothing == 0))

    found = summarise(scores, owners, np.ones(60), Scores(nothing, nothing > 0)).rms_delta_p

    squares = delta[::10] ** 2
    error = squares.std(ddof=1) / np.sqrt(6) / 2 / np.sqrt(squares.mean())
    assert found.error == pytest.approx(error, rel=1e-4)


def test_a_text_that_is_one_cluster_is_summed_up_without_intervals():
    values, owners = np.linspace(0.1, 2, 50), np.full(50, 3)
    scores = Scores(values, values > 1, Divergence(values, values, values, values < 1))

    found = summarise(scores, owners, np.full(50, 4), Scores(values + 0.1, values > 1.5))

    for estimate in (
        found.perplexity,
        found.bits_per_byte,
        found.log_ratio,
        found.kld,
        found.same_top,
        found.rms_delta_p,
        *found.tails.values(),
    ):
        assert np.isfinite(estimate.value) and not estimate.has_interval
    assert (found.same_top.low, found.same_top.high) == (0.0, 1.0)
    assert found.log_ratio.value == pytest.approx(-0.1)
