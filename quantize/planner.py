"""The planner: from what was measured, what is asked for and what the machine has, to a plan."""

from gemcut.quantize.frontier import with_alternatives
from gemcut.quantize.outcome import Outcome, Task
from gemcut.quantize.search import Search, check_sensitivity


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
    outcome = Outcome(search.report.plan(solution), chosen, notes=notes)
    return with_alternatives(search, outcome, solution, aim) if alternatives else outcome
