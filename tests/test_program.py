"""The program finds what trying everything finds: on instances that are small, but have the sizes,
losses and times of real ones, so that what a solver tolerates would show."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut.runtime.placement.problem import (
    HOST,
    LOSS,
    SECONDS,
    SIZE,
    Aim,
    Item,
    Option,
    Problem,
    Solution,
)
from gemcut.runtime.placement.program import place, solve

ALIKE = 1e-9  # relative: what is less is rounding
SEEDS = st.integers(0, 2**32 - 1)
WIDTHS = (None, None, "experts", "dense")


# --- trying everything ---


@dataclass(frozen=True)
class Tried:
    """What some combinations come to: arrays of one length, `held` of every place."""

    loss: np.ndarray
    seconds: np.ndarray
    size: np.ndarray
    held: tuple[np.ndarray, ...]
    room: tuple[np.ndarray, ...]  # taken of every place: `held` and what is staged

    def within(self, problem: Problem, slack: float) -> np.ndarray:
        """Which of them keep all bounds, up to a relative slack."""
        sums = [self.size, self.seconds, self.loss, *self.room]
        most = [problem.size, problem.seconds, problem.loss, *problem.room]
        kept = [sum_ <= bound * (1 + slack) for sum_, bound in zip(sums, most, strict=True)]
        return np.all(kept, axis=0)

    def cost(self, aim: Aim) -> np.ndarray:
        """What an aim minimises."""
        if aim.held is not None:
            return self.room[aim.held]
        return aim.loss * self.loss + aim.seconds * self.seconds + aim.size * self.size


def ways(item: Item) -> Iterator[list[tuple[Item, Option, int]]]:
    """All that may become of an item, wherever its block is."""
    places = range(len(item.options[0].seconds))
    yield from ([(item, *each)] for each in product(item.options, places))
    if item.parts:
        for parts in product(*(list(ways(part)) for part in item.parts)):
            yield [one for part in parts for one in part]


def allowed(item: Item, at: int, homes: tuple[int, ...]) -> bool:
    """Whether an item may be at a place."""
    if item.places is not None and at not in item.places:
        return False
    if item.block is None:
        return at == HOST
    return at == homes[item.block] or (at == HOST and item.roams)


def tried(problem: Problem, homes: tuple[int, ...]) -> Tried | None:
    """Every combination with these homes; None: there is none."""
    places, cards = range(len(problem.room)), len(problem.room) - 1
    sums = {name: np.zeros(1) for name in ("loss", "seconds", "size", "staged")}
    held = [np.zeros(1) for _ in places]
    apart, mixed = [np.zeros(1, bool) for _ in homes], {w: [np.zeros(1, bool)] * 2 for w in WIDTHS}
    for item in problem.items:
        found = [way for way in ways(item) if all(allowed(i, at, homes) for i, _, at in way)]
        if not found:
            return None
        for name in ("loss", "size"):
            sums[name] = add(sums[name], [sum(getattr(o, name) for _, o, _ in w) for w in found])
        sums["seconds"] = add(
            sums["seconds"], [sum(o.seconds[at] for _, o, at in way) for way in found]
        )
        for at in places:
            takes = [
                sum(o.size for i, o, p in way if p == at or (i.copied and at == HOST))
                for way in found
            ]
            held[at] = add(held[at], takes)
        away = [[roaming(one, homes) for one in way] for way in found]
        largest = [
            max(o.size * a for (_, o, _), a in zip(w, x, strict=True))
            for w, x in zip(found, away, strict=True)
        ]
        sums["staged"] = np.maximum.outer(sums["staged"], largest).ravel()
        for block, flags in enumerate(apart):
            own = [
                any(a and i.block == block for (i, _, _), a in zip(w, x, strict=True))
                for w, x in zip(found, away, strict=True)
            ]
            apart[block] = np.logical_or.outer(flags, own).ravel()
        for width, (plain, padded) in mixed.items():
            known = [[o.padded for i, o, _ in way if width and i.width == width] for way in found]
            mixed[width] = [
                np.logical_or.outer(plain, [not all(each) for each in known]).ravel(),
                np.logical_or.outer(padded, [any(each) for each in known]).ravel(),
            ]
    for block, home in enumerate(homes):
        if block < len(problem.caches):
            held[home] = held[home] + problem.caches[block]
        if block < len(problem.reads):
            sums["seconds"] = sums["seconds"] + problem.reads[block][home]
        sums["seconds"] = sums["seconds"] + problem.sync * apart[block]
    staged = np.zeros(1)
    if problem.staged is not None:
        staged = np.maximum(sums["staged"], problem.staged)
    room = [held[HOST], *(held[at + 1] + staged for at in range(cards))]
    good = ~np.any([plain & padded for plain, padded in mixed.values()], axis=0)
    seconds = sums["seconds"] + problem.overhead
    return Tried(
        sums["loss"][good],
        seconds[good],
        sums["size"][good],
        tuple(each[good] for each in held),
        tuple(each[good] for each in room),
    )


def add(total: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """The sums of all combinations so far with one more."""
    return np.add.outer(total, np.array(values, float)).ravel()


def roaming(one: tuple[Item, Option, int], homes: tuple[int, ...]) -> bool:
    """Whether this is on the host while its block is on a card."""
    item, _, at = one
    return item.roams and item.block is not None and at == HOST != homes[item.block]


def everything(problem: Problem) -> list[list[Tried]]:
    """All combinations: with no block at home on the host beside cards, and with any."""
    places = range(len(problem.room))
    turns = [places[1:] or places] + ([places] if problem.at_home and places[1:] else [])
    return [
        [
            found
            for homes in combinations_with_replacement(turn, problem.blocks)
            if (found := tried(problem, homes)) is not None
        ]
        for turn in turns
    ]


def least(problem: Problem, all_: list[list[Tried]], slack: float = 0.0) -> float | None:
    """The least of what is minimised; None: nothing fits."""
    for turn in all_:
        costs = [each.cost(problem.aim)[each.within(problem, slack)] for each in turn]
        if any(len(each) for each in costs):
            return min(float(each.min()) for each in costs if len(each))
    return None


# --- instances ---


def instance(seed: int) -> Problem:
    """A problem without bounds on sums, of the shape of real ones."""
    draw = np.random.default_rng(seed)
    places = int(draw.integers(1, 4))
    blocks = int(draw.integers(1, 4))
    count = int(draw.integers(2, 6))
    wide = dict.fromkeys(("experts", "dense"), bool(draw.integers(2)))
    items = tuple(_item(draw, f"t{i}", places, blocks, wide) for i in range(count))
    caches = tuple(int(10 ** draw.uniform(5, 9)) for _ in range(int(draw.integers(blocks + 1))))
    return Problem(
        items,
        (math.inf,) * places,
        caches,
        tuple(_seconds(draw, places) for _ in caches),
        int(10 ** draw.uniform(6, 9)) if draw.integers(2) else None,
        bool(draw.integers(4)),
        10 ** draw.uniform(-5, -3),
        3e-3,
    )


def _item(
    draw, name: str, places: int, blocks: int, wide: dict[str, bool], block: int = -2
) -> Item:
    if block == -2:
        block = int(draw.integers(-1, blocks))
    width = WIDTHS[draw.integers(len(WIDTHS))]
    both = width is not None and wide[width]
    options = _options(draw, places, int(draw.integers(2, 5 - places // 3)))
    if width is not None:
        more = _options(draw, places, int(draw.integers(1, 3))) if both else []
        options += [replace(option, padded=True) for option in more]
    roams = block >= 0 and bool(draw.integers(2))
    apart = places < 3 and draw.integers(4) == 0 and not name.count(".")
    parts = [_item(draw, f"{name}.{i}", places, blocks, wide, block) for i in range(2 * apart)]
    at = frozenset(int(p) for p in draw.permutation(places)[: int(draw.integers(1, places + 1))])
    return Item(
        name,
        tuple(options),
        block if block >= 0 else None,
        roams,
        block >= 0 and not draw.integers(4),
        width,
        tuple(parts),
        at if draw.integers(6) == 0 else None,
    )


def _options(draw, places: int, count: int) -> list[Option]:
    """Larger is better, mostly; in one of three cases as types are: in steps."""
    sizes = sorted(int(10 ** draw.uniform(8, 10)) for _ in range(count))
    if draw.integers(3) == 0:
        sizes = [1_000_000 * (size // 1_000_000) for size in sizes]
    losses = sorted((float(10 ** draw.uniform(-6, 0)) for _ in range(count)), reverse=True)
    if draw.integers(4) == 0:
        losses[-1] = 0.0
    return [
        Option(f"o{i}", size, loss, tuple(size * s / 1e9 for s in _seconds(draw, places)))
        for i, (size, loss) in enumerate(zip(sizes, losses, strict=True))
    ]


def _seconds(draw, places: int) -> tuple[float, ...]:
    return tuple(float(10 ** draw.uniform(-5, -1)) for _ in range(places))


def bounded(seed: int, problem: Problem, all_: list[list[Tried]]) -> Problem:
    """With bounds that some combination just keeps, or just does not."""
    draw = np.random.default_rng([seed, 1])
    found = [each for turn in all_ for each in turn if len(each.loss)]
    if not found:
        return problem
    one = found[draw.integers(len(found))]
    index = int(draw.integers(len(one.loss)))

    def some(value: float) -> float:
        return (
            float(value) + (0, 0, 1, -1, -30, -1000, -30000, 1e6)[draw.integers(8)]
            if draw.integers(2)
            else math.inf
        )

    def share(value: float) -> float:
        return float(value) * (1, 1.001, 1.2)[draw.integers(3)] if draw.integers(3) else math.inf

    return replace(
        problem,
        room=tuple(some(each[index]) for each in one.room),
        size=some(one.size[index]),
        seconds=share(one.seconds[index]) if draw.integers(2) else math.inf,
        loss=share(one.loss[index]) if draw.integers(2) else math.inf,
        aim=_aim(draw, len(problem.room)),
    )


def _aim(draw, places: int) -> Aim:
    prices = Aim(loss=1, seconds=10 ** draw.uniform(-4, 2))
    sized = Aim(loss=1, size=10 ** draw.uniform(-14, -8))
    aims = [LOSS, LOSS, SECONDS, SIZE, Aim(held=int(draw.integers(places))), prices, sized]
    return aims[draw.integers(len(aims))]


def costed(problem: Problem, solution: Solution) -> float:
    """What the problem minimises; a place's bytes with what is staged there."""
    aim = problem.aim
    if aim.held is not None:
        return solution.held[aim.held] + (staged(problem, solution) if aim.held else 0)
    return aim.loss * solution.loss + aim.seconds * solution.seconds + aim.size * solution.size


def staged(problem: Problem, solution: Solution) -> int:
    """Bytes that every card stages."""
    items = {part.name: part for item in problem.items for part in (item, *item.parts)}
    if problem.staged is None or len(problem.room) == 1:
        return 0
    away = [
        chosen.option.size
        for name, chosen in solution.chosen.items()
        if roaming((items[name], chosen.option, chosen.place), solution.homes)
    ]
    return max([problem.staged, *away])


def posed(seed: int) -> tuple[Problem, list[list[Tried]]]:
    """A problem with bounds, and all combinations."""
    problem = instance(seed)
    all_ = everything(problem)
    return bounded(seed, problem, all_), all_


# --- the properties ---


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
