"""The planner: from what was measured, what is asked for and what the machine has, to a plan."""

from dataclasses import dataclass, replace

from gemcut.errors import BudgetError
from gemcut.quantize.checks import check_sensitivity
from gemcut.quantize.frontier import with_alternatives
from gemcut.quantize.layouts import layouts
from gemcut.quantize.outcome import Outcome, Task
from gemcut.quantize.search import Search
from gemcut.quantize.worth import Worth
from gemcut.runtime.placement.problem import HOST, LOSS, Aim, Solution

_EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class _Choice:
    """What was chosen, and the aim that it minimises."""

    search: Search
    solution: Solution
    aim: Aim
    worth: Worth | None = None

    def cost(self, aim: Aim) -> float:
        """What it comes to by another choice's aim."""
        found = self.solution
        seconds = found.seconds + found.reading
        return aim.loss * found.loss + aim.seconds * seconds + aim.size * found.size


def plan_model(task: Task, alternatives: bool = True) -> Outcome:
    """The best plan for a task.

    Args:
        alternatives: find the frontier that it lies on, too, and what more would buy.

    Raises:
        BudgetError: nothing fits; it says which limit binds, and what would do.
        PlanError: rules fit no tensor, or no type is left for one.
        SensitivityError: the sensitivity is another model's.
        EngineError: the solver failed.
    """
    notes = check_sensitivity(task)
    best = _best(task)
    search, solution = best.search, best.solution
    chosen = search.report.point(solution, task.request.preference)
    plan = search.report.plan(solution, best.worth)
    notes = (*notes, *_pulled(search), *_hostless(task, search))
    outcome = Outcome(plan, chosen, notes=notes, worth=best.worth, loading=search.task.loading)
    return with_alternatives(search, outcome, solution, best.aim) if alternatives else outcome


def _best(task: Task) -> _Choice:
    """The best choice, priced with weights that lie on the host as a run of its file has them lie.

    A limit that only a layout keeps which no run would take is not kept.
    """
    found: list[_Choice] = []
    refused: list[BudgetError] = []
    for loading in layouts(task.machine) if task.machine else [None]:
        try:
            found.append(_chosen(replace(task, loading=loading)))
        except BudgetError as error:
            refused.append(error)
    own = [each for each in found if each.search.is_run(each.solution)]
    if refused and not own:
        raise refused[0]
    choices = own or found
    return min(choices, key=lambda each: each.cost(choices[0].aim))


def _chosen(task: Task) -> _Choice:
    """The best choice; with types per expert, if they are asked for and worth it."""
    search, expected = Search(_stock(task)), task.rescale.expected
    try:
        solution, aim = search.choose()
    except BudgetError:
        if not task.request.per_expert:
            raise
        mixing = Search(task)
        mixed, aim = mixing.choose()
        return _Choice(mixing, mixed, aim, Worth(expected(mixed.loss), None))
    if not task.request.per_expert or search.all_on_cards:
        return _Choice(search, solution, aim)
    mixing, price = Search(task, solution), search.mixing_price(solution)
    mixing_aim = mixing.priced(price) if aim == LOSS else aim
    mixed = mixing.chosen(mixing_aim) or solution
    worth = _worth(search, solution, mixing, mixed, price)
    if worth.enough:
        return _Choice(mixing, mixed, mixing_aim, worth)
    return _Choice(search, solution, aim, worth)


def _worth(
    search: Search, solution: Solution, mixing: Search, mixed: Solution, price: float
) -> Worth:
    """What mixtures are worth, beside a solution without."""
    request, expected = search.task.request, search.task.rescale.expected
    new = mixing.report.point(mixed, request.preference)
    old = search.report.point(solution, request.preference)
    return Worth(
        expected(mixed.loss),
        expected(solution.loss),
        expected(max(0.0, search.equal(solution, mixed, price))),
        search.machine is not None and price > 0,
        new.request,
        old.request,
        _ratio(new.decode, old.decode),
        _ratio(new.prefill, old.prefill),
    )


def _ratio(new: float | None, old: float | None) -> float | None:
    return new / old if new and old else None


def _stock(task: Task) -> Task:
    return replace(task, request=replace(task.request, per_expert=False))


def _pulled(search: Search) -> tuple[str, ...]:
    """What a rule for a tied embedding brings along."""
    pinned = any(
        item.name == _EMBEDDING and item.block is not None and item.places == frozenset((HOST,))
        for item in search.problem.items
    )
    if not pinned or search.machine is None or not search.machine.cards:
        return ()
    return (
        f"{_EMBEDDING} is the output, too, and llama.cpp fills the host first: with it on the host "
        "every block is computed there",
    )


def _hostless(task: Task, search: Search) -> tuple[str, ...]:
    """Why nothing comes of types per expert without RAM."""
    if not task.request.per_expert or not search.all_on_cards:
        return ()
    return ("types per expert: such experts live in RAM, and none is planned with; give --ram",)
