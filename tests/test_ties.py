"""Files share a letter if and only if they cannot be told apart."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.eval.statistics.intervals import mean
from gemcut.eval.statistics.ties import (
    compact_letters,
    detectable_between,
    holm,
    pairs,
    tie_letters,
)


@st.composite
def decisions(draw):
    """A number of files and which pairs of them are apart: any, transitive or not."""
    n = draw(st.integers(0, 8))
    return n, [pair for pair in combinations(range(n), 2) if draw(st.booleans())]


@given(decisions())
def test_two_share_a_letter_if_and_only_if_they_are_not_apart(case):
    n, apart = case

    letters = compact_letters(n, apart)

    for i, j in combinations(range(n), 2):
        assert bool(set(letters[i]) & set(letters[j])) == ((i, j) not in apart)
    assert all(letters)
    if n:
        assert letters[0][0] == "a"
    used = set("".join(letters))  # and none could be left out
    groups = {each: {i for i in range(n) if each in letters[i]} for each in used}
    assert not any(a < b for a in groups.values() for b in groups.values())


def test_letters_of_pieces_that_overlap():
    """Neighbours tie, the ends do not; without any tie each has its own."""
    assert compact_letters(3, [(0, 2)]) == ["a", "ab", "b"]
    assert compact_letters(3, [(0, 1), (0, 2), (1, 2)]) == ["a", "b", "c"]
    assert compact_letters(2, []) == ["a", "a"]


def test_there_are_letters_for_many_files():
    letters = compact_letters(40, list(combinations(range(40), 2)))

    assert len(set(letters)) == 40 and all(each.isalpha() for each in letters)


# By hand: 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04 which is not below the one before.
def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def files(random, *shifts, clusters=40, length=30, spread=0.05):
    """Files that differ by a shift, and a little otherwise in every cluster, on one text."""
    owners = np.repeat(np.arange(clusters), length)
    text = random.gamma(1.0, size=len(owners)) + random.normal(size=clusters)[owners]
    return [
        text + shift + spread * random.normal(size=clusters)[owners] for shift in shifts
    ], owners


def letters(columns, owners):
    return tie_letters(columns, pairs(columns, owners))


def least_seen(columns, owners):
    return detectable_between(pairs(columns, owners), owners)


def test_pairing_tells_apart_what_the_intervals_of_each_do_not():
    columns, owners = files(np.random.default_rng(1), 0.2, 0.0, 0.001)
    worse, best, close = (mean(each, owners) for each in columns)
    assert worse.low < best.high

    assert letters(columns, owners) == ["b", "a", "a"]
    found = {(pair.first, pair.second): pair for pair in pairs(columns, owners)}
    assert found[0, 1].difference.value == pytest.approx(best.value - worse.value)
    assert found[0, 1].difference.high < 0 and found[0, 1].apart
    assert not found[1, 2].apart


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 4))
def test_a_single_pair_is_apart_when_its_interval_leaves_zero_out(seed, clusters, length):
    random = np.random.default_rng(seed)
    columns, owners = files(random, 0.0, 0.05, clusters=clusters, length=length)

    (pair,) = pairs(columns, owners)

    assert pair.apart == (not pair.difference.low <= 0 <= pair.difference.high)


def test_equal_files_are_told_apart_5_times_of_100_at_most_whatever_their_number():
    random, runs, wrong = np.random.default_rng(2), 200, 0
    for _ in range(runs):
        columns, owners = files(random, *[0.0] * 5, clusters=12, length=2)
        wrong += set(letters(columns, owners)) != {"a"}

    assert wrong / runs <= 0.08


def test_files_that_are_the_same_or_apart_by_a_constant():
    values = np.arange(20.0)
    owners = np.repeat(np.arange(10), 2)

    assert letters([values, values], owners) == ["a", "a"]
    assert letters([values, values + 1], owners) == ["a", "b"]


def test_one_piece_of_text_tells_nothing_apart():
    values, owners = np.arange(20.0), np.zeros(20, int)

    assert letters([values, values + 1], owners) == ["a", "a"]
    assert least_seen([values, values + 1], owners) is None


def test_files_without_a_pair():
    values, owners = np.arange(20.0), np.arange(20)

    assert letters([], owners) == []
    assert letters([values], owners) == ["a"]
    assert least_seen([values], owners) is None


@pytest.mark.parametrize("others", [0, 4])
def test_what_can_be_detected_is_told_apart_four_times_of_five(others):
    """Of two files alone, and of two among many: each pair more takes a larger difference."""
    random, seen, runs = np.random.default_rng(3), 0, 150
    rest = (0.0,) * others
    columns, owners = files(random, 0.0, 0.0, *rest, clusters=60, length=1)
    least = least_seen(columns, owners)
    for _ in range(runs):
        first, *_ = pairs(*files(random, 0.0, least, *rest, clusters=60, length=1))
        seen += first.apart

    assert 0.7 <= seen / runs <= 0.92
