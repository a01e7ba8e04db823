"""The program finds what trying everything finds: on instances that are small, but have the sizes,
losses and times of real ones, so that what a solver tolerates would show."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut.runtime.placement.problem import (
    HOST,
    LOSS,
    Item,
    Option,
    Problem,
    Solution,
)
from gemcut.runtime.placement.program import improved, place, solve
from tests.problems import ALIKE, SEEDS, WIDTHS, allowed, costed, least, posed, staged


def check_consistent(problem: Problem, solution: Solution) -> None:
    """It is one of the combinations that the problem allows, and its sums are right."""
    chosen, homes = solution.chosen, solution.homes
    assert all(a <= b for a, b in pairwise(homes)) and len(homes) == problem.blocks
    written: list[Item] = []
    for item in problem.items:
        assert (item.name in chosen) != (
            bool(item.parts) and all(part.name in chosen for part in item.parts)
        )
        written += [item] if item.name in chosen else item.parts
    assert len(written) == len(chosen)
    held = [0] * len(problem.room)
    for item in written:
        option, at = chosen[item.name].option, chosen[item.name].place
        assert option in item.options and allowed(item, at, homes), item.name
        for where in {at, HOST} if item.copied else {at}:
            held[where] += option.size
    for home, size in zip(homes, problem.caches, strict=False):
        held[home] += size
    for width in WIDTHS[2:]:
        padded = {chosen[item.name].option.padded for item in written if item.width == width}
        assert len(padded) < 2
    assert solution.held == tuple(held)
    options = [one.option for one in chosen.values()]
    assert solution.size == sum(option.size for option in options)
    assert solution.loss == pytest.approx(sum(option.loss for option in options))
    check_kept(problem, solution)


def check_kept(problem: Problem, solution: Solution) -> None:
    """No bound is passed by more than rounding."""
    more = staged(problem, solution)
    held = [bytes_ + (more if at else 0) for at, bytes_ in enumerate(solution.held)]
    for bytes_, room in zip(held, problem.room, strict=True):
        assert bytes_ <= room * (1 + ALIKE)
    assert solution.size <= problem.size * (1 + ALIKE)
    assert solution.seconds <= problem.seconds * (1 + ALIKE)
    assert solution.loss <= problem.loss * (1 + ALIKE)


def check_best(problem: Problem, solution: Solution | None, all_, gap: float = ALIKE) -> None:
    """It costs what the best of all combinations does; there is none if none fits.

    What bounds tell apart by rounding alone may count as fitting or not.
    """
    known = [least(problem, all_, slack) for slack in (-ALIKE, ALIKE)]
    costs_ = [cost for cost in known if cost is not None]
    if solution is None:
        assert known[0] is None
        return
    cost = costed(problem, solution)
    assert min(costs_) * (1 - ALIKE) <= cost
    assert cost <= max(costs_) * (1 + gap) + gap * problem.aim.loss * 0.01 or known[0] is None


@given(SEEDS)
@settings(max_examples=120)
def test_it_finds_what_trying_everything_finds(seed):
    """Whatever is minimised, and whatever is bounded; and nothing where nothing fits."""
    problem, all_ = posed(seed)

    found = solve(problem, gap=0)
    check_best(problem, found, all_)
    if found is not None:
        check_consistent(problem, found)


@given(SEEDS, st.sampled_from([1e-4, 1e-2]))
@settings(max_examples=50)
def test_the_gap_is_kept(seed, gap):
    """And what is told of it is not less than what it is."""
    problem, all_ = posed(seed)

    found = solve(problem, gap)
    check_best(problem, found, all_, gap * (1 + 1e-6))
    if found is not None:
        check_consistent(problem, found)
        check_best(problem, found, all_, found.gap + ALIKE)


@given(SEEDS)
@settings(max_examples=50)
def test_rough_is_a_choice_that_fits(seed):
    """It is worse than the best, if at all, but consistent."""
    problem, all_ = posed(seed)
    problem = replace(problem, at_home=False)

    found = solve(replace(problem, rough=True), gap=0)
    if found is not None:
        check_consistent(problem, found)
        best = least(problem, all_[:1], ALIKE)
        assert best is not None and costed(problem, found) >= best * (1 - ALIKE)


@given(SEEDS)
@settings(max_examples=50)
def test_more_of_anything_is_never_worse(seed):
    """Of loss, where a place, the file, or a token's time may be larger."""
    problem, _ = posed(seed)
    room = tuple(1.00001 * bytes_ for bytes_ in problem.room)  # not at the edge of what fits
    problem = replace(problem, aim=LOSS, at_home=False, room=room, size=1.00001 * problem.size)
    found = solve(problem, gap=0)
    if found is None:
        return
    for bound in ("size", "seconds"):
        more = solve(replace(problem, **{bound: 1.1 * getattr(problem, bound)}), gap=0)
        assert more is not None and more.loss <= found.loss * (1 + ALIKE)
    for at in range(len(room)):
        wider = (*room[:at], room[at] * 1.1, *room[at + 1 :])
        more = solve(replace(problem, room=wider), gap=0)
        assert more is not None and more.loss <= found.loss * (1 + ALIKE)


@given(SEEDS)
@settings(max_examples=50)
def test_placing_keeps_the_options_and_never_takes_longer(seed):
    """Of a choice by loss alone, which says nothing of places."""
    problem, _ = posed(seed)
    problem = replace(problem, aim=LOSS)
    found = solve(problem, gap=0)
    if found is None:
        return

    placed = place(problem, found)
    check_consistent(problem, placed)
    options = {name: chosen.option for name, chosen in found.chosen.items()}
    assert options == {name: chosen.option for name, chosen in placed.chosen.items()}
    # Blocks go home to the host only where that is needed, however much faster it is there.
    if HOST not in found.homes or len(problem.room) == 1:
        assert placed.seconds <= found.seconds * (1 + 2e-4)
    assert placed.gap == found.gap


@given(SEEDS)
@settings(max_examples=50)
def test_a_known_solution_is_improved(seed):
    """That of fewer options: with all of them it costs no more."""
    problem, all_ = posed(seed)
    fewer = tuple(replace(item, options=item.options[::2]) for item in problem.items)
    known = solve(replace(problem, items=fewer), gap=0)
    if known is None:
        return

    found = improved(problem, known, gap=0)
    check_consistent(problem, found)
    assert costed(problem, found) <= costed(problem, known) * (1 + ALIKE)
    if HOST in known.homes:  # else no home there is looked for
        check_best(problem, found, all_)


def test_nothing_fits_into_less_than_nothing():
    """Of memory, of which what comes first took more than there is; of time; of loss."""
    problem = Problem((Item("t", (Option("o", 0, 1.0),)),), overhead=1.0)

    assert solve(problem) is not None
    assert solve(replace(problem, room=(-1.0,))) is None
    assert solve(replace(problem, seconds=0.9)) is None
    assert solve(replace(problem, loss=0.0)) is None


def test_the_same_problem_has_the_same_solution_twice():
    """Of those that cost the same."""
    option = Option("o", 1_000_000_000, 0.5, (1.0, 1.0, 1.0))
    items = tuple(Item(f"t{i}", (option, replace(option, name="p")), i % 3) for i in range(9))
    problem = Problem(items, (1e12, 1e12, 1e12))

    assert solve(problem) == solve(problem)
