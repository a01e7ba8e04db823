"""The program: a type and a place for every tensor, chosen together and exactly.

A mixed-integer linear program for HiGHS. Every tensor takes one of its options at one place; every
block has a home, which its attention, norms and caches share, while routed experts may stay on the
host. Minimised is the predicted loss, the time for a token, or the bytes; all three may be bounded,
and what each place holds is. With one option a tensor it places a finished file; with one place it
chooses types for a size.

Variables, each 0 or 1, and the rows that tie them:

    x[i,o,p]  item i is written as option o and lives at place p; over o and p they sum to 1 - s[i]
    s[i]      item i is written as its parts, and for each of these they sum to s[i]
    y[b,p]    block b is at home at place p: at one, and blocks fill the places in order
    z[b]      b's experts are on the host while b is on a card: z >= x at the host - y at the host
    w[c]      class c of widths is zero-padded in all blocks: x <= w if padded, else x <= 1 - w

and, in MiB, the largest tensor on the host that cards stage in order to compute prompts with it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gemcut.errors import EngineError
from gemcut.runtime.problem import (
    HOST,
    SECONDS,
    Chosen,
    Item,
    Option,
    Problem,
    Solution,
)

if TYPE_CHECKING:
    import highspy

GAP = 1e-4  # relative, at which a solution counts as the best
_SCALE = 1e4  # what a row's bound becomes: HiGHS' tolerances are absolute
_TOLERANCE = 1e-9  # HiGHS' own lets a presolved bound be passed by 1e-7 of it, which are bytes here
_LOSS = 0.01  # nats: gaps of smaller losses are relative to it, since nobody can tell these apart
_MIB = 1 << 20
_TRIES = 2  # numbers of blocks on the host
_FEASIBLE = 2  # HiGHS' kSolutionStatusFeasible


def solve(problem: Problem, gap: float = GAP) -> Solution | None:
    """The best solution, up to a relative gap; None: there is none, or none was found in time,
    which happens at the very edge of what fits.

    Beside cards, blocks are at home on these unless they do not fit there: only then, and if they
    may, do some of them go to the host with their caches, which is slow.

    Raises:
        EngineError: HiGHS failed.
    """
    if problem.homes:
        return _Program(problem, problem.homes).solve(gap)
    places = tuple(range(len(problem.room)))
    if places[1:]:
        found = _Program(problem, [places[1:]] * problem.blocks).solve(gap)
        if found or not problem.at_home:
            return found
    start = _divided(problem, gap) if len(places) == 2 else None
    return _Program(problem, [places] * problem.blocks).solve(gap, start)


def bound(problem: Problem) -> float:
    """Seconds that no solution is below, found sooner than a solution; infinity: there is none.

    Raises:
        EngineError: HiGHS failed.
    """
    places = tuple(range(len(problem.room)))
    homes = places if problem.at_home or not places[1:] else places[1:]
    return _Program(problem, problem.homes or [homes] * problem.blocks).bound()


def _divided(problem: Problem, gap: float) -> Solution | None:
    """A good solution with as few blocks at home on the host as the card demands; None: not found.

    HiGHS may look for it in vain: where blocks may be anywhere, nearly all it tries does not fit.
    """
    least = _at_home(problem)
    first = next((n for n in range(problem.blocks) if sum(least[n:]) <= problem.room[1]), None)
    for count in range(problem.blocks if first is None else first, problem.blocks + 1)[:_TRIES]:
        homes = [(HOST,)] * count + [(1,)] * (problem.blocks - count)
        if found := _Program(problem, homes).solve(gap):
            return found
    return None


def _at_home(problem: Problem) -> list[int]:
    """Bytes that each block takes at least where it is at home."""
    least = [*problem.caches, *[0] * (problem.blocks - len(problem.caches))]
    for item in problem.items:
        if item.block is not None and not item.roams:
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


@dataclass
class _Columns:
    """The variables: what each adds to the sums, and which of them are choices."""

    loss: list[float]
    seconds: list[float]
    size: list[int]
    held: list[dict[int, int]]
    choices: dict[int, tuple[Item, Option, int]]
    free: dict[int, tuple[float, float]]  # those that are numbers in a range, not 0 or 1

    def add(
        self,
        loss: float = 0.0,
        seconds: float = 0.0,
        size: int = 0,
        held: Mapping[int, int] | None = None,
    ) -> int:
        self.loss.append(loss)
        self.seconds.append(seconds)
        self.size.append(size)
        self.held.append(dict(held or {}))
        return len(self.loss) - 1


class _Program:
    """The variables and rows of a problem."""

    def __init__(self, problem: Problem, homes: Sequence[tuple[int, ...]]) -> None:
        """Lay it out; `homes` are the places that each block may have."""
        self.problem = problem
        self.columns = _Columns([], [], [], [], {}, {})
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
        found = _front(item.options, at)
        if not self.problem.rough:
            return found
        padded = [option for option in found if option.padded]
        return _hull([option for option in found if not option.padded]) + _hull(padded)

    def _choice(self, item: Item, option: Option, at: int) -> int:
        held = {at: option.size, HOST: option.size} if item.copied else {at: option.size}
        column = self.columns.add(option.loss, option.seconds[at], option.size, held)
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

    def _apart(self, block: int, own: Mapping[int, tuple[Option, int]]) -> None:
        """What it takes that experts are on the host while their block is on a card."""
        here = {column: option for column, (option, at) in own.items() if at == HOST}
        at_home = self.homes[block].get(HOST)
        if block not in self.syncs:
            self.syncs[block] = self.columns.add(seconds=self.problem.sync)
        row = dict.fromkeys(here, 1.0) | {self.syncs[block]: -1.0}
        self.rows.append((row | ({} if at_home is None else {at_home: -1.0}), -math.inf, 0))
        if self.stage is not None:
            row = {column: option.size / _MIB for column, option in here.items()}
            most = max(row.values(), default=0.0)
            row |= {self.stage: -1.0} | ({} if at_home is None else {at_home: -most})
            self.rows.append((row, -math.inf, 0))

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
        unit = _SCALE / max(abs(most), sum(map(abs, values)) / 1e6, 1e-300)
        row = {column: value * unit for column, value in enumerate(values) if value}
        self.rows.append((row, -math.inf, most * unit))

    def solve(self, gap: float, start: Solution | None = None) -> Solution | None:
        """Hand it to HiGHS, and read the answer.

        Args:
            start: a solution of the same problem, to be improved in a quarter of the time.
        """
        if self._forced:
            return self._solution(np.ones(len(self.columns.loss)), 0.0) if self._holds else None
        solver = self._solver(gap)
        if start is not None:
            self._begin(solver, start)
        solver.run()
        status, info = solver.modelStatusToString(solver.getModelStatus()), solver.getInfo()
        if status not in ("Optimal", "Infeasible", "Time limit reached"):
            raise EngineError(f"HiGHS failed on a plan: {status}")
        if info.primal_solution_status != _FEASIBLE:
            return None
        values = np.asarray(solver.getSolution().col_value)
        return self._solution(values, max(0.0, info.mip_gap))

    def bound(self) -> float:
        """The least seconds if everything could be divided."""
        if self._forced:
            least = self.problem.overhead + sum(self.columns.seconds)
            return least if self._holds else math.inf
        solver = self._solver(0.0, whole=False)
        solver.run()
        status = solver.modelStatusToString(solver.getModelStatus())
        if status == "Infeasible":
            return math.inf
        if status != "Optimal":
            raise EngineError(f"HiGHS failed on a plan: {status}")
        values = np.asarray(solver.getSolution().col_value)
        return self.problem.overhead + float(values @ np.array(self.columns.seconds))

    @property
    def _forced(self) -> bool:
        """Whether nothing is to be chosen: one place and one option for everything."""
        choices = len(self.problem.items) + len(self.homes)
        apart = any(item.parts for item in self.problem.items)
        return len(self.columns.loss) == choices and not apart

    @property
    def _holds(self) -> bool:
        """Whether the rows allow that everything is chosen."""
        sums = ((sum(row.values()), low, high) for row, low, high in self.rows)
        return all(low <= total <= high for total, low, high in sums)

    def _solver(self, gap: float, whole: bool = True) -> "highspy.Highs":
        import highspy

        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        for option, value in {
            "output_flag": False,
            "mip_rel_gap": gap,
            "mip_abs_gap": gap * _LOSS * self._unit if self.problem.aim.loss else 0.0,
            "time_limit": self.problem.patience,
            "threads": 1,
            "random_seed": 0,
            "mip_feasibility_tolerance": _TOLERANCE,
            "primal_feasibility_tolerance": _TOLERANCE,
        }.items():
            solver.setOptionValue(option, value)
        solver.passModel(self._model(highspy, whole))
        return solver

    def _begin(self, solver: "highspy.Highs", start: Solution) -> None:
        taken = {(name, each.option, each.place) for name, each in start.chosen.items()}
        known = {
            column: float((item.name, option, at) in taken)
            for column, (item, option, at) in self.columns.choices.items()
        }
        for home, chosen in zip(self.homes, start.homes, strict=True):
            known |= {column: float(at == chosen) for at, column in home.items()}
        solver.setOptionValue("time_limit", self.problem.patience / 4)
        solver.setSolution(len(known), np.array(list(known), np.int32), np.array([*known.values()]))

    def _model(self, highspy: Any, whole: bool) -> Any:
        cost, free, count = self._cost, self.columns.free, len(self.columns.loss)
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = count, len(self.rows)
        lp.col_cost_ = cost * self._unit
        lp.col_lower_ = np.array([free.get(column, (0, 1))[0] for column in range(count)], float)
        lp.col_upper_ = np.array([free.get(column, (0, 1))[1] for column in range(count)], float)
        kinds = highspy.HighsVarType
        if whole:
            lp.integrality_ = [
                kinds.kContinuous if column in free else kinds.kInteger for column in range(count)
            ]
        lp.row_lower_ = np.array([low for _, low, _ in self.rows])
        lp.row_upper_ = np.array([high for _, _, high in self.rows])
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lengths = [len(row) for row, _, _ in self.rows]
        lp.a_matrix_.start_ = np.concatenate([[0], np.cumsum(lengths)])
        lp.a_matrix_.index_ = np.array([column for row, _, _ in self.rows for column in row])
        lp.a_matrix_.value_ = np.array([v for row, _, _ in self.rows for v in row.values()])
        return lp

    @property
    def _unit(self) -> float:
        """What brings costs to a size that HiGHS' tolerances are made for."""
        return _SCALE / max(float(np.abs(self._cost).max(initial=0.0)), 1e-300)

    @cached_property
    def _cost(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """What each variable adds to what is minimised."""
        aim, columns = self.problem.aim, self.columns
        if aim.held is not None:
            return np.array([held.get(aim.held, 0) for held in columns.held], float)
        prices = (aim.loss, aim.seconds, aim.size)
        sums = np.array([columns.loss, columns.seconds, columns.size], float)
        cost: np.ndarray[Any, np.dtype[np.float64]] = np.array(prices) @ sums
        return cost

    def _solution(self, values: np.ndarray[Any, np.dtype[np.float64]], gap: float) -> Solution:
        columns, choices = self.columns, self.columns.choices
        whole = (column for column in range(len(values)) if column not in columns.free)
        taken = [column for column in whole if values[column] > 0.5]
        chosen = {
            choices[column][0].name: Chosen(*choices[column][1:])
            for column in taken
            if column in choices
        }
        homes = tuple(
            next(at for at, column in home.items() if values[column] > 0.5) for home in self.homes
        )
        places = range(len(self.problem.room))
        held = [sum(columns.held[column].get(at, 0) for column in taken) for at in places]
        return Solution(
            chosen,
            homes,
            sum(columns.loss[c] for c in taken),
            self.problem.overhead + sum(columns.seconds[c] for c in taken),
            sum(columns.size[c] for c in taken),
            tuple(held),
            gap,
        )


def _front(options: tuple[Option, ...], at: int) -> list[Option]:
    """The options that no other of the same padding beats at this place in every respect."""
    found: list[Option] = []
    for option in sorted(options, key=lambda o: (o.size, o.loss, o.seconds[at])):
        if not any(
            better.padded == option.padded
            and better.loss <= option.loss
            and better.seconds[at] <= option.seconds[at]
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
