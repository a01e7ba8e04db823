"""The program: a type and a place for every tensor, chosen together and exactly.

A mixed-integer linear program (`formulation`) for HiGHS (`solver`). Minimised is the predicted
loss, the time for a token, or the bytes; all three may be bounded, and what each place holds is.
With one option a tensor it places a finished file; with one place it chooses types for a size. Here
is in which order homes of blocks are tried.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from gemcut.runtime.placement.formulation import Formulation
from gemcut.runtime.placement.problem import HOST, SECONDS, Chosen, Item, Problem, Solution
from gemcut.runtime.placement.solver import least_seconds, optimum

GAP = 1e-4  # relative, at which a solution counts as the best
_START = 0.02  # the gap of a solution that is only begun with
_TRIES = 2  # numbers of blocks on the host


def solve(problem: Problem, gap: float = GAP) -> Solution | None:
    """The best solution, up to a relative gap; None: there is none, or none was found in time,
    which happens at the very edge of what fits.

    Beside cards, blocks are at home on these unless they do not fit there: only then, and if they
    may, do some of them go to the host with their caches, which is slow.

    Raises:
        EngineError: HiGHS failed.
    """
    if problem.homes:
        return optimum(Formulation(problem, problem.homes), gap)
    places = tuple(range(len(problem.room)))
    if places[1:]:
        start = _shared_out(problem, gap) if places[2:] else None
        found = optimum(Formulation(problem, [places[1:]] * problem.blocks), gap, start)
        if found or not problem.at_home:
            return found
    start = _divided(problem, gap) if len(places) == 2 else None
    return optimum(Formulation(problem, [places] * problem.blocks), gap, start)


def improved(problem: Problem, known: Solution, gap: float = GAP) -> Solution | None:
    """The best solution where a good one is known of the same problem with fewer options.

    First each tensor takes its best option at the place where it was, which is found soon; then a
    quarter of the time goes into better places.

    Raises:
        EngineError: HiGHS failed.
    """
    if len(problem.room) == 1:
        return solve(problem, gap)
    items = tuple(_pinned(item, known.chosen) for item in problem.items)
    homes = tuple((home,) for home in known.homes)
    start = optimum(Formulation(replace(problem, items=items), homes), gap)
    if start is None:
        return solve(problem, gap)
    first = 1 if HOST not in known.homes else HOST
    places = tuple(range(first, len(problem.room)))
    return optimum(Formulation(problem, [places] * problem.blocks), gap, start) or start


def _pinned(item: Item, chosen: Mapping[str, Chosen]) -> Item:
    if item.name not in chosen:
        return item
    return replace(item, places=frozenset({chosen[item.name].place}))


def bound(problem: Problem) -> float:
    """Seconds that no solution is below, found sooner than a solution; infinity: there is none.

    Raises:
        EngineError: HiGHS failed.
    """
    places = tuple(range(len(problem.room)))
    homes = places if problem.at_home or not places[1:] else places[1:]
    return least_seconds(Formulation(problem, problem.homes or [homes] * problem.blocks))


def _divided(problem: Problem, gap: float) -> Solution | None:
    """A good solution with as few blocks at home on the host as the card demands; None: not found.

    HiGHS may look for it in vain: where blocks may be anywhere, nearly all it tries does not fit.
    """
    least = _at_home(problem)
    first = next((n for n in range(problem.blocks) if sum(least[n:]) <= problem.room[1]), None)
    for count in range(problem.blocks if first is None else first, problem.blocks + 1)[:_TRIES]:
        homes = [(HOST,)] * count + [(1,)] * (problem.blocks - count)
        if found := optimum(Formulation(problem, homes), gap):
            return found
    return None


def _shared_out(problem: Problem, gap: float) -> Solution | None:
    """A good solution with blocks at home on the cards in proportion to room; None: not found.

    Where several cards are too small for all experts, HiGHS may leave much of them empty for long.
    """
    rooms = [max(0.0, room) for room in problem.room[1:]]
    ends = [sum(rooms[: card + 1]) for card in range(len(rooms))]
    sizes = _at_home(problem, roaming=True)
    whole, homes, before = sum(sizes) or 1, [], 0.0
    for size in sizes:
        middle = (before + size / 2) / whole * ends[-1]
        homes.append((1 + next((card for card, end in enumerate(ends) if middle < end), 0),))
        before += size
    quick = replace(problem, patience=problem.patience / 2)
    return optimum(Formulation(quick, homes), max(gap, _START))


def _at_home(problem: Problem, roaming: bool = False) -> list[int]:
    """Bytes that each block takes at least where it is at home, perhaps with all its experts."""
    least = [*problem.caches, *[0] * (problem.blocks - len(problem.caches))]
    for item in problem.items:
        if item.block is not None and (roaming or not item.roams):
            least[item.block] += min(option.size for option in item.options)
    return least


def place(problem: Problem, solution: Solution) -> Solution:
    """The same options where they take the least time."""
    found = placed(problem, solution)
    return solution if found is None else replace(found, gap=solution.gap)


def placed(problem: Problem, solution: Solution) -> Solution | None:
    """The options of a solution where they take the least time in another problem, if they fit."""
    items = tuple(_fixed(problem.items, solution.chosen))
    return solve(replace(problem, items=items, aim=SECONDS, loss=math.inf))


def _fixed(items: tuple[Item, ...], chosen: Mapping[str, Chosen]) -> Iterator[Item]:
    for item in items:
        if item.name in chosen:
            yield replace(item, options=(chosen[item.name].option,), parts=())
        else:
            yield from _fixed(item.parts, chosen)
