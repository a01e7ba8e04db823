"""The scorer against textbook formulas, in float64, on random logits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut.errors import EngineError
from gemcut.score import Divergence, Scores, broken, log_softmax, score


def logits(rows, vocabulary, seed, spread=4.0):
    return np.random.default_rng(seed).normal(0, spread, (rows, vocabulary)).astype(np.float32)


def targets(rows, vocabulary, seed=0):
    return np.random.default_rng(seed).integers(0, vocabulary, rows, dtype=np.int32)


def softmax(x):
    p = np.exp(x.astype(np.longdouble) - x.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def divergence(scores: Scores) -> Divergence:
    assert scores.divergence is not None
    return scores.divergence


@given(st.integers(1, 40), st.integers(2, 700), st.integers(0, 2**31), st.floats(0.01, 30))
@settings(deadline=None, max_examples=50)
def test_every_number_follows_its_definition(rows, vocabulary, seed, spread):
    x, y = logits(rows, vocabulary, seed, spread), logits(rows, vocabulary, seed + 1, spread)
    t = targets(rows, vocabulary, seed)
    p, q, at = softmax(x), softmax(y), (np.arange(rows), t)

    first, second = score(t, [y], reference=x)

    assert first.divergence is None
    np.testing.assert_allclose(first.nll, -np.log(p[at]).astype(float), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(second.nll, -np.log(q[at]).astype(float), rtol=1e-6, atol=1e-6)
    assert (second.correct == (y.argmax(axis=1) == t)).all()
    apart = np.log(p) - np.log(q)
    kld, reverse = (p * apart).sum(axis=1).astype(float), -(q * apart).sum(axis=1).astype(float)
    np.testing.assert_allclose(divergence(second).kld, kld, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(divergence(second).reverse, reverse, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(divergence(second).delta_p, (q[at] - p[at]).astype(float), atol=1e-6)
    assert (divergence(second).same_top == (x.argmax(axis=1) == y.argmax(axis=1))).all()


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    """One row at a time, as for a very large vocabulary, and all at once agree."""
    x, y, t = logits(50, 300, 1), logits(50, 300, 2), targets(50, 300)
    whole = score(t, [y], reference=x)

    monkeypatch.setattr("gemcut.score._BLOCK", 300)
    by_row = score(t, [y], reference=x)

    for a, b in zip(whole, by_row, strict=True):
        np.testing.assert_allclose(a.nll, b.nll, rtol=1e-12)
    np.testing.assert_allclose(divergence(whole[1]).kld, divergence(by_row[1]).kld, rtol=1e-12)


def test_threads_do_not_change_the_result():
    x, y, t = logits(2000, 300, 1), logits(2000, 300, 2), targets(2000, 300)

    alone, together = score(t, [y], x), score(t, [y], x, threads=3)

    for a, b in zip(alone, together, strict=True):
        assert (a.nll == b.nll).all() and (a.correct == b.correct).all()
    assert (divergence(alone[1]).kld == divergence(together[1]).kld).all()


def test_a_distribution_does_not_diverge_from_itself():
    x, t = logits(20, 2048, 3), targets(20, 2048)

    _, other = score(t, [x + np.float32(0)], reference=x)

    assert (divergence(other).kld == 0).all()
    assert (divergence(other).delta_p == 0).all()
    assert divergence(other).same_top.all()


def test_adding_a_constant_to_all_logits_changes_nothing():
    x, t = np.round(logits(20, 500, 4)), targets(20, 500)

    plain, moved = score(t, [x, x + np.float32(64)])

    np.testing.assert_allclose(plain.nll, moved.nll, rtol=1e-12)


def test_equal_logits_give_the_top_to_the_lowest_id():
    flat, t = np.zeros((1, 8), np.float32), targets(1, 8)
    peaked = flat.copy()
    peaked[0, 0] = 1

    _, other = score(t, [peaked], reference=flat)

    assert divergence(other).same_top.all()


def test_extreme_logits_neither_overflow_nor_lose_the_tail():
    """A target 200 nats below the top keeps its exact likelihood: nothing is clamped."""
    x = np.array([[0, -200, -300]], np.float32)

    (only,) = score(np.array([1], np.int32), [x])

    assert only.nll == pytest.approx(200)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_with_a_logit_that_is_not_finite_are_counted(value):
    x, y, t = logits(5, 64, 5), logits(5, 64, 6), targets(5, 64)
    y[3, 7] = value

    first, second = score(t, [y], reference=x)

    assert (broken(first), broken(second)) == (0, 1)
    assert np.isnan(second.nll[3])


def test_the_logits_given_are_not_changed():
    x, y, t = logits(5, 64, 7), logits(5, 64, 8), targets(5, 64)
    before = x.copy(), y.copy()

    score(t, [y], reference=x)

    assert (x == before[0]).all() and (y == before[1]).all()


def test_shapes_that_disagree_are_refused():
    with pytest.raises(EngineError, match="3 targets"):
        score(targets(3, 8), [logits(4, 8, 0)])
    with pytest.raises(EngineError, match="against logits"):
        score(targets(4, 8), [logits(4, 8, 0)], reference=logits(4, 9, 0))


def test_scores_join():
    x, y, t = logits(6, 32, 1), logits(6, 32, 2), targets(6, 32)
    whole = score(t, [y], reference=x)[1]
    parts = [score(t[i : i + 3], [y[i : i + 3]], reference=x[i : i + 3])[1] for i in (0, 3)]

    joined = Scores.join(parts)

    np.testing.assert_array_equal(divergence(joined).kld, divergence(whole).kld)


def test_log_softmax_sums_to_one():
    p = np.exp(log_softmax(logits(4, 1000, 9)))

    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
