"""Why nothing fits: which limit is too tight, and the nearest that would do."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from gemcut.profile import Profile
from gemcut.runtime.placement.problem import HOST, LOSS, SECONDS, SIZE, Aim, Problem, Solution
from gemcut.runtime.placement.program import solve
from gemcut.sizes import format_size

_GAP = 1e-3


def binding(
    problem: Problem,
    machine: Profile | None,
    beside: int = 0,
    weights: int | None = None,
    expected: Callable[[float], float] = float,
) -> str:
    """A sentence: every limit that alone stands in the way, with the least that would do.

    Args:
        beside: bytes of a file beside its tensors.
        weights: of the model, if its size was asked for in bits for each.
        expected: the loss to tell, of one that is predicted.
    """
    said = [*_memory(problem, machine), *_size_of(problem, beside, weights)]
    said += [*_others(problem, expected), *_ruled(problem)]
    if said:
        return f"nothing fits: {'; or '.join(said)}"
    limits = "memory, size, speed and loss" if machine else "size and loss"
    return (
        f"nothing fits, and no single limit is to blame: {limits} together are too tight; "
        "relax two of them, or allow smaller types (--types all)"
    )


def _memory(problem: Problem, machine: Profile | None) -> Iterator[str]:
    for at, place in enumerate(machine.places if machine else ()):
        if math.isfinite(problem.room[at]):
            room = tuple(math.inf if p == at else r for p, r in enumerate(problem.room))
            found = solve(replace(problem, room=room, aim=Aim(held=at)), _GAP)
            taken = found and found.held[at] + (_staged(problem, found) if at else 0)
            if taken and taken > problem.room[at]:
                least = _size(place.memory + taken - int(problem.room[at]))
                kind = "RAM" if at == 0 else f"VRAM on {place.name}"
                yield f"{least} of {kind} would do ({format_size(place.memory)} given)"


def _staged(problem: Problem, solution: Solution) -> int:
    """Bytes that a card stages of what the host has of the blocks."""
    items = {part.name: part for item in problem.items for part in (item, *item.parts)}
    away = [
        chosen.option.size
        for name, chosen in solution.chosen.items()
        if chosen.place == HOST and (block := items[name].block) is not None
        if block < len(problem.caches) and not chosen.option.hosted
    ]
    return 0 if problem.staged is None else max([problem.staged, *away])


def _size_of(problem: Problem, beside: int, weights: int | None) -> Iterator[str]:
    if math.isfinite(problem.size):
        found = solve(replace(problem, size=math.inf, aim=SIZE), _GAP)
        if found is not None:
            least = found.size + beside
            if weights is None:
                yield f"a file of {least} bytes would do ({format_size(least)})"
            else:
                yield f"{_rounded(8 * least / weights, up=True)} bits per weight would do"


def _others(problem: Problem, expected: Callable[[float], float]) -> Iterator[str]:
    if math.isfinite(problem.seconds):
        found = solve(replace(problem, seconds=math.inf, aim=SECONDS), _GAP)
        if found is not None:
            yield (
                f"{_rounded(1 / found.seconds, up=False)} tokens per second would do "
                f"({1 / problem.seconds:.3g} asked for)"
            )
    if math.isfinite(problem.loss):
        found = solve(replace(problem, loss=math.inf, aim=LOSS), _GAP)
        if found is not None:
            yield (
                f"a predicted loss of {_rounded(expected(found.loss), up=True)} would do "
                f"({expected(problem.loss):.3g} asked for)"
            )


def _ruled(problem: Problem) -> Iterator[str]:
    """The places that rules give, if something fits without them."""
    every = [each for item in problem.items for each in (item, *item.parts)]
    names = [item.name for item in every if item.places is not None]
    free = tuple(
        replace(item, places=None, parts=tuple(replace(part, places=None) for part in item.parts))
        for item in problem.items
    )
    if names and solve(replace(problem, items=free, aim=SIZE), _GAP) is not None:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"other places than the rules give to {names[0]}{more} would do"


def _size(bytes_: int) -> str:
    """Rounded up to what is said of it, so that it does."""
    step = 10 ** max(0, len(str(bytes_)) - 3)
    return format_size(-(-bytes_ // step) * step)


def _rounded(value: float, up: bool) -> str:
    """To three digits, to the side that does."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2) if value > 0 else 1.0
    return f"{(math.ceil if up else math.floor)(value / step) * step:.3g}"
