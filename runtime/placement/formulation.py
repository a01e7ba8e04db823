"""The program's variables and rows: a problem in the form that HiGHS takes.

Every tensor takes one of its options at one place; every block has a home, which its attention,
norms and caches share, while routed experts may stay on the host. Variables, each 0 or 1, and the
rows that tie them:

    x[i,o,p]  item i is written as option o and lives at place p; over o and p they sum to 1 - s[i]
    s[i]      item i is written as its parts, and for each of these they sum to s[i]
    y[b,p]    block b is at home at place p: at one, and blocks fill the places in order
    z[b]      b's experts are on the host while b is on a card: z >= x at the host - y at the host
    w[c]      class c of widths is zero-padded in all blocks: x <= w if padded, else x <= 1 - w

and, in MiB, the largest tensor of the blocks on the host: cards stage it to compute prompts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gemcut.runtime.placement.problem import HOST, Item, Option, Problem

SCALE = 1e4  # what a row's bound becomes: HiGHS' tolerances are absolute
_MIB = 1 << 20


@dataclass
class Columns:
    """The variables: what each adds to the sums, and which of them are choices."""

    loss: list[float]
    seconds: list[float]
    size: list[int]
    held: list[dict[int, int]]
    reading: list[float]
    choices: dict[int, tuple[Item, Option, int]]
    free: dict[int, tuple[float, float]]  # those that are numbers in a range, not 0 or 1

    def add(
        self,
        loss: float = 0.0,
        seconds: float = 0.0,
        size: int = 0,
        held: Mapping[int, int] | None = None,
        reading: float = 0.0,
    ) -> int:
        self.loss.append(loss)
        self.seconds.append(seconds)
        self.size.append(size)
        self.held.append(dict(held or {}))
        self.reading.append(reading)
        return len(self.loss) - 1


class Formulation:
    """The variables and rows of a problem.

    Attributes:
        rows: (factors of the variables, least, most) of each sum.
        homes: of each block, the variable of each place where it may be at home.
    """

    def __init__(self, problem: Problem, homes: Sequence[tuple[int, ...]]) -> None:
        """Lay it out; `homes` are the places that each block may have."""
        self.problem = problem
        self.columns = Columns([], [], [], [], [], {}, {})
        self.rows: list[tuple[dict[int, float], float, float]] = []
        self.homes = [self._block(block, places) for block, places in enumerate(homes)]
        self.widths: dict[str, int] = {}
        self.syncs: dict[int, int] = {}
        self.stage = self._staging()
        self._order()
        for item in problem.items:
            self._item(item)
        self._bounds()

    def _block(self, block: int, places: tuple[int, ...]) -> dict[int, int]:
        problem, found = self.problem, {}
        size = problem.caches[block] if block < len(problem.caches) else 0
        for at in places:
            seconds = problem.reads[block][at] if block < len(problem.reads) else 0.0
            found[at] = self.columns.add(seconds=seconds, held={at: size})
        self.rows.append((dict.fromkeys(found.values(), 1.0), 1, 1))
        return found

    def _staging(self) -> int | None:
        if self.problem.staged is None or len(self.problem.room) == 1:
            return None
        column = self.columns.add(held=dict.fromkeys(range(1, len(self.problem.room)), _MIB))
        self.columns.free[column] = (self.problem.staged / _MIB, math.inf)
        return column

    def _order(self) -> None:
        """Blocks fill the places in their order, the host first, as llama.cpp lays them out."""
        for before, after in zip(self.homes, self.homes[1:], strict=False):
            for cut in range(len(self.problem.room) - 1):
                row = {column: 1.0 for at, column in before.items() if at <= cut}
                row |= {column: -1.0 for at, column in after.items() if at <= cut}
                if row:
                    self.rows.append((row, 0, math.inf))

    def _item(self, item: Item, apart: int | None = None) -> None:
        """The variables of an item, or of a part of one, and the rows that tie them."""
        own = {
            self._choice(item, option, at): (option, at)
            for at in self._places(item)
            for option in self._options(item, at)
        }
        total = dict.fromkeys(own, 1.0)
        if apart is not None:
            self.rows.append((total | {apart: -1.0}, 0, 0))
        elif item.parts:
            split = self.columns.add()
            self.rows.append((total | {split: 1.0}, 1, 1))
            for part in item.parts:
                self._item(part, split)
        else:
            self.rows.append((total, 1, 1))
        self._home(item, own)
        self._padding(item, own)

    def _options(self, item: Item, at: int) -> list[Option]:
        allowed = (option for option in item.options if at == HOST or not option.hosted)
        found = _front(allowed, at, reading=self.problem.aim.seconds > 0)
        if not self.problem.rough:
            return found
        padded = [option for option in found if option.padded]
        return _hull([option for option in found if not option.padded]) + _hull(padded)

    def _choice(self, item: Item, option: Option, at: int) -> int:
        held = {at: option.size}
        if item.copied and (at != HOST or item.apart):
            held[HOST] = held.get(HOST, 0) + option.size
        column = self.columns.add(
            option.loss, option.seconds[at], option.size, held, option.reading
        )
        self.columns.choices[column] = (item, option, at)
        return column

    def _places(self, item: Item) -> list[int]:
        if item.block is None:
            found = {HOST}
        else:
            found = set(self.homes[item.block]) | ({HOST} if item.roams else set())
        return sorted(found if item.places is None else found & item.places)

    def _home(self, item: Item, own: Mapping[int, tuple[Option, int]]) -> None:
        if item.block is None:
            return
        home = self.homes[item.block]
        for at in {at for _, at in own.values()}:
            row = {column: 1.0 for column, (_, where) in own.items() if where == at}
            if at != HOST or not item.roams:
                self.rows.append((row | {home[at]: -1.0}, -math.inf, 0))
            elif len(self.problem.room) > 1:
                self._apart(item.block, own)
        if self.stage is not None and item.block < len(self.problem.caches):
            self._staged(item, own, self.stage)

    def _apart(self, block: int, own: Mapping[int, tuple[Option, int]]) -> None:
        """What it takes that experts are on the host while their block is on a card."""
        here = {column: option for column, (option, at) in own.items() if at == HOST}
        at_home = self.homes[block].get(HOST)
        if block not in self.syncs:
            self.syncs[block] = self.columns.add(seconds=self.problem.sync)
        row = dict.fromkeys(here, 1.0) | {self.syncs[block]: -1.0}
        self.rows.append((row | ({} if at_home is None else {at_home: -1.0}), -math.inf, 0))

    def _staged(self, item: Item, own: Mapping[int, tuple[Option, int]], stage: int) -> None:
        """What it takes of a card that this is on the host, wherever its block is at home."""
        row = {
            column: (option.size if item.largest is None else item.largest) / _MIB
            for column, (option, at) in own.items()
            if at == HOST and not option.hosted
        }
        if any(row.values()):
            self.rows.append((row | {stage: -1.0}, -math.inf, 0))

    def _padding(self, item: Item, own: Mapping[int, tuple[Option, int]]) -> None:
        if item.width is None:
            return
        if item.width not in self.widths:
            self.widths[item.width] = self.columns.add()
        padded = self.widths[item.width]
        plain = {column: 1.0 for column, (option, _) in own.items() if not option.padded}
        wide = {column: 1.0 for column, (option, _) in own.items() if option.padded}
        self.rows.append((plain | {padded: 1.0}, -math.inf, 1))
        self.rows.append((wide | {padded: -1.0}, -math.inf, 0))

    def _bounds(self) -> None:
        problem, columns = self.problem, self.columns
        for at, room in enumerate(problem.room):
            self._bound([held.get(at, 0) for held in columns.held], room)
        self._bound(columns.size, problem.size)
        self._bound(columns.seconds, problem.seconds - problem.overhead)
        self._bound(columns.loss, problem.loss)

    def _bound(self, values: list[float] | list[int], most: float) -> None:
        if math.isinf(most):
            return
        unit = SCALE / max(abs(most), sum(map(abs, values)) / 1e6, 1e-300)
        row = {column: value * unit for column, value in enumerate(values) if value}
        self.rows.append((row, -math.inf, most * unit))

    @property
    def forced(self) -> bool:
        """Whether nothing is to be chosen: one place and one option for everything."""
        choices = len(self.problem.items) + len(self.homes)
        apart = any(item.parts for item in self.problem.items)
        return len(self.columns.loss) == choices and not apart

    @property
    def holds(self) -> bool:
        """Whether the rows allow that everything is chosen."""
        sums = ((sum(row.values()), low, high) for row, low, high in self.rows)
        return all(low <= total <= high for total, low, high in sums)

    @cached_property
    def cost(self) -> NDArray[np.float64]:
        """What each variable adds to what is minimised."""
        aim, columns = self.problem.aim, self.columns
        if aim.held is not None:
            return np.array([held.get(aim.held, 0) for held in columns.held], float)
        prices = (aim.loss, aim.seconds, aim.seconds, aim.size)
        sums = np.array([columns.loss, columns.seconds, columns.reading, columns.size], float)
        cost: NDArray[np.float64] = np.array(prices) @ sums
        return cost


def _front(options: Iterable[Option], at: int, reading: bool) -> list[Option]:
    """The options that no other of the same padding beats at this place in every respect.

    Args:
        reading: whether it matters how long prompts take.
    """
    found: list[Option] = []
    for option in sorted(options, key=lambda o: (o.size, o.loss, o.seconds[at])):
        if not any(
            better.padded == option.padded
            and better.loss <= option.loss
            and better.seconds[at] <= option.seconds[at]
            and (better.reading <= option.reading or not reading)
            for better in found
        ):
            found.append(option)
    return found


def _hull(options: list[Option]) -> list[Option]:
    """Of options by size, those on the convex front of size and loss."""
    found: list[Option] = []
    for option in options:
        if found and found[-1].loss <= option.loss:
            continue  # it is there for being faster
        while len(found) > 1 and _slope(found[-2], found[-1]) <= _slope(found[-1], option):
            found.pop()
        found.append(option)
    return found


def _slope(small: Option, large: Option) -> float:
    """Loss saved per byte."""
    return (small.loss - large.loss) / max(large.size - small.size, 1)
