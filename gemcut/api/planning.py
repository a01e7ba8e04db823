"""From a source, and what a user has and wants, to a plan."""

from collections.abc import Iterable, Sequence
from functools import partial

from gemcut.convert.model import Model
from gemcut.engine import ContextOptions
from gemcut.plan import Measured, Plan
from gemcut.profile import Profile
from gemcut.quantize.identity import digest
from gemcut.quantize.importance import Importance, importance_for
from gemcut.quantize.outcome import Outcome, Task
from gemcut.quantize.planner import plan_model
from gemcut.quantize.request import Request
from gemcut.quantize.rescale import pairs_of, rescale
from gemcut.quantize.statistics import Statistics
from gemcut.quantize.writer import metadata
from gemcut.sensitivity import Sensitivity

_CONTEXT = ContextOptions(n_ctx=8192, n_outputs=1)


def make_task(
    model: Model,
    request: Request,
    sensitivity: Sensitivity | None = None,
    statistics: Statistics | None = None,
    machine: Profile | None = None,
    context: ContextOptions = _CONTEXT,
    measured: Iterable[Measured] = (),
) -> Task:
    """All that a plan is made from.

    Args:
        sensitivity: None: priors.
        statistics: of the importance that the file will be cut with.
        machine: None: types alone are chosen, for the size that the request says.
        measured: what files of the same model were found to lose; it corrects the prediction.

    Raises:
        PlanError: the importance is another model's.
        UsageError: what was measured is none.
    """
    importance = {} if statistics is None else importance_for(statistics, model.tensors)
    return Task(
        model,
        request,
        partial(metadata, model),
        sensitivity,
        frozenset(importance),
        machine,
        context,
        rescale(pairs_of(measured)),
        None if statistics is None else digest(statistics),
    )


def make_outcome(
    model: Model,
    request: Request,
    sensitivity: Sensitivity | None = None,
    statistics: Statistics | None = None,
    machine: Profile | None = None,
    context: ContextOptions = _CONTEXT,
    validated: Sequence[Plan] = (),
    alternatives: bool = True,
) -> Outcome:
    """The best types and places for all tensors of a model; see `make_task`.

    Args:
        validated: plans of the same model whose files were scored; they correct the prediction.
        alternatives: find the frontier, too, and what more memory or context would bring.

    Raises:
        BudgetError: nothing fits; it says what would.
        PlanError, SensitivityError, UsageError, EngineError: see `quantize.planner.plan_model`.
    """
    measured = [found for plan in validated for found in plan.measured]
    task = make_task(model, request, sensitivity, statistics, machine, context, measured)
    return plan_model(task, alternatives)


def plan_types(model: Model, request: Request, importance: Importance | None = None) -> Plan:
    """The types alone, by priors."""
    weighted = frozenset(importance or ())
    task = Task(model, request, partial(metadata, model), weighted=weighted)
    return plan_model(task, alternatives=False).plan
