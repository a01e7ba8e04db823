"""What else there is: choices from the smallest to one without loss, and what more would buy."""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from gemcut.quantize.outcome import Gain, Outcome, Point, Task
from gemcut.quantize.search import GAP, ROUGH, Search
from gemcut.runtime.placement.problem import SIZE, Aim, Solution
from gemcut.runtime.placement.program import placed, solve

_STEPS = (64.0, 16.0, 4.0, 0.25, 0.0625)  # prices, in that of the knee
_SIZE_STEPS = (1.0, 4.0, 16.0)  # the like for a byte: where less is slower, it still is less
_NONE = 1e-9  # nats
_ALIKE = 2e-3  # relative difference of sizes
_GIGABYTE = 10**9
_MORE_CONTEXT = 16 << 10
_CONTEXT = "16k more context, same file"
_THREADS = 2


def with_alternatives(search: Search, outcome: Outcome, chosen: Solution, aim: Aim) -> Outcome:
    """The outcome with its frontier, and with what a little more of everything would bring.

    Args:
        chosen: the outcome's choice, and the aim that it minimises.
    """
    smallest = search.rough(SIZE)
    aims = [("balance", search.priced(search.price))]
    aims += [("", search.priced(search.price * step)) for step in _STEPS]
    aims += [("", each) for each in _by_size(smallest, search.best)]
    aims = [(label, each) for label, each in aims if label != outcome.chosen.label]
    with ThreadPoolExecutor(_THREADS) as pool:
        beside = search.header(chosen)
        gains = list(pool.map(lambda more: _gain(aim, beside, *more), _more(search.task)))
        if search.machine:
            gains.append(_longer(search.task, chosen))
        solutions = pool.map(search.rough, [each for _, each in aims])
        found = [(label, s) for (label, _), s in zip(aims, solutions, strict=True) if s]
    found += [("speed" if search.machine else "default range", search.fastest)]
    found += [("quality", search.best)]
    found += [("smallest", smallest)] if smallest else []
    points = [search.report.point(s, label) for label, s in found]
    points = [point for point in points if point.label != outcome.chosen.label]
    points += [point for point in [_lossless(search), outcome.chosen] if point]
    frontier = _apart(points)
    return replace(outcome, frontier=frontier, gains=tuple(gain for gain in gains if gain))


def _by_size(smallest: Solution | None, best: Solution) -> list[Aim]:
    """Prices of a byte, from that of the straight line between the smallest and the best."""
    if smallest is None or smallest.size >= best.size:
        return []
    price = (smallest.loss - best.loss) / (best.size - smallest.size)
    return [Aim(loss=1, size=price * step) for step in _SIZE_STEPS]


def _lossless(search: Search) -> Point | None:
    """A file that loses nothing, whether it fits or not; None: rules or types do not allow one."""
    problem = replace(search.problem, aim=SIZE, loss=_NONE, rough=True)
    if found := solve(problem, ROUGH):
        return search.report.point(found, "lossless")
    free = solve(replace(problem, room=(math.inf,) * len(problem.room)), ROUGH)
    if free is None:
        return None
    point = search.report.point(free, "lossless")
    return replace(point, fits=False, decode=None, prefill=None)


def _apart(points: Iterable[Point]) -> tuple[Point, ...]:
    """By size; of points that are alike those with a name."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.size, not p.label)):
        alike = found and point.size < found[-1].size * (1 + _ALIKE)
        if alike and not point.label:
            continue
        if alike and not found[-1].label:
            found.pop()
        found.append(point)
    return tuple(found)


def _more(task: Task) -> list[tuple[str, Task]]:
    """What more one could have: memory, or a larger file."""
    found, machine, request = [], task.machine, task.request
    if request.size is not None:
        larger = replace(request, size=request.size + _GIGABYTE)
        found.append(("1 GB larger a file", replace(task, request=larger)))
    if machine is None:
        return found
    for index, card in enumerate(machine.cards):
        cards = list(machine.cards)
        cards[index] = replace(card, memory=card.memory + _GIGABYTE)
        more = machine.with_cards(tuple(cards))
        found.append((f"1 GB more VRAM on {card.name}", replace(task, machine=more)))
    if machine.host.memory:
        host = replace(machine.host, memory=machine.host.memory + _GIGABYTE)
        found.append(("1 GB more RAM", replace(task, machine=replace(machine, host=host))))
    return found


def _longer(task: Task, chosen: Solution) -> Gain | None:
    """The same file with more context; None: then it no longer fits."""
    longer = replace(task.context, n_ctx=task.context.n_ctx + _MORE_CONTEXT)
    search = Search(replace(task, context=longer))
    found = placed(search.problem, chosen)
    return None if found is None else Gain(_CONTEXT, search.report.point(found, _CONTEXT))


def _gain(aim: Aim, beside: int, what: str, more: Task) -> Gain | None:
    """What the same aim gives with more; None: it does not fit.

    Args:
        beside: bytes of a limited size that are not the tensors'.
    """
    search = Search(more)
    bounded = search.bounded
    problem = replace(bounded, aim=aim, size=bounded.size - beside)
    found = search.solved(problem, GAP)
    return None if found is None else Gain(what, search.report.point(found, what))
