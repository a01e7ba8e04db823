"""Why a tensor became what it is: all it could have been, and what each would have cost."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gemcut.errors import PlanError
from gemcut.plan import Plan
from gemcut.quantize.checks import check_sensitivity
from gemcut.quantize.choices import Way
from gemcut.quantize.outcome import Task
from gemcut.quantize.search import Search
from gemcut.runtime.placement.problem import Item, Option


@dataclass(frozen=True)
class Alternative:
    """One way to write a tensor. Speeds and losses are predicted."""

    type: str
    padded_to: int | None
    size: int  # bytes
    error: float | None  # relative squared error of its values; None: nothing is lost
    loss: float  # KL divergence that it costs
    seconds: tuple[float, ...]  # for a token, at each place
    below: bool  # the default range
    taken: bool
    experts: Mapping[str, int] = field(default_factory=dict)  # how many have each type, if theirs


@dataclass(frozen=True)
class Explanation:
    """A tensor of the plan, and its alternatives by size."""

    name: str
    places: tuple[str, ...]
    device: str | None
    alternatives: tuple[Alternative, ...]


def explain(task: Task, plan: Plan, name: str) -> tuple[Explanation, ...]:
    """The alternatives of a tensor; of one that is fused in the source, of its parts, too.

    Raises:
        PlanError: no tensor has the name.
    """
    check_sensitivity(task)
    search = Search(task)
    for item in search.choices.items:
        if name in (item.name, *(part.name for part in item.parts)):
            return tuple(_explained(search, plan, each) for each in (item, *item.parts))
    raise PlanError(f"{name}: no tensor has this name; see `gemcut inspect --tensors`")


def _explained(search: Search, plan: Plan, item: Item) -> Explanation:
    ordered = sorted(item.options, key=lambda option: (option.size, option.name))
    found = tuple(_alternatives(search, plan, item, ordered))
    entry = plan.tensors.get(item.name)
    return Explanation(item.name, search.places, entry.device if entry else None, found)


def _alternatives(
    search: Search, plan: Plan, item: Item, options: list[Option]
) -> Iterator[Alternative]:
    for option in options:
        way = search.choices.way(item.name, option)
        yield Alternative(
            way.type,
            way.padded_to,
            option.size,
            way.error.mean if way.error else None,
            option.loss,
            option.seconds,
            way.below,
            _taken(plan, item.name, way),
            dict(Counter(way.experts).most_common()),
        )


def _taken(plan: Plan, name: str, way: Way) -> bool:
    entry = plan.tensors.get(name)
    if entry is None:
        return False
    wanted = way.type, way.padded_to, way.experts
    return (entry.type, entry.padded_to, entry.experts or ()) == wanted
