"""The planner: from what was measured, what is asked for and what the machine has, to a plan."""

from gemcut.quantize.frontier import with_alternatives
from gemcut.quantize.outcome import Outcome, Task
from gemcut.quantize.search import Search, check_sensitivity
from gemcut.runtime.placement.problem import HOST

_EMBEDDING = "token_embd.weight"


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
    search = Search(task)
    solution, aim = search.choose()
    label = task.request.preference
    chosen = search.report.point(solution, label)
    outcome = Outcome(search.report.plan(solution), chosen, notes=(*notes, *_pulled(search)))
    return with_alternatives(search, outcome, solution, aim) if alternatives else outcome


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
