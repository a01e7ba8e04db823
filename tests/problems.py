"""Small problems of the shape of real ones for the placement's program, and all their solutions."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, product

import numpy as np
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
        largest = [max(o.size * taken(problem, i, at) for i, o, at in way) for way in found]
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


def taken(problem: Problem, item: Item, at: int) -> bool:
    """Whether cards that compute prompts take this over from the host."""
    return at == HOST and item.block is not None and item.block < len(problem.caches)


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
        if taken(problem, items[name], chosen.place)
    ]
    return max([problem.staged, *away])


def posed(seed: int) -> tuple[Problem, list[list[Tried]]]:
    """A problem with bounds, and all combinations."""
    problem = instance(seed)
    all_ = everything(problem)
    return bounded(seed, problem, all_), all_
