"""From a source, and what a user has and wants, to a plan."""

from collections.abc import Iterable
from functools import partial

from gemcut.convert.model import Model
from gemcut.engine import ContextOptions
from gemcut.errors import PlanError
from gemcut.plan import Measured, Plan
from gemcut.profile import Profile
from gemcut.quantize.identity import digest, fingerprint, model_key, sensitivity_digest
from gemcut.quantize.importance import Importance, importance_for
from gemcut.quantize.outcome import Task
from gemcut.quantize.planner import plan_model
from gemcut.quantize.request import Request
from gemcut.quantize.rescale import pairs_of, rescale
from gemcut.quantize.statistics import Statistics
from gemcut.quantize.writer import carrying, metadata
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
    if statistics is not None:  # the file says so, and that takes bytes
        model = carrying(model, statistics)
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
        statistics,
    )


def measured_of(
    model: Model, plan: Plan, sensitivity: Sensitivity | None = None
) -> tuple[Measured, ...]:
    """What a plan's file was found to lose; nothing if another sensitivity had predicted it.

    Args:
        sensitivity: with which the model is planned now; None: priors.

    Raises:
        PlanError: the plan is another model's, or its file was not scored.
    """
    if not plan.measured:
        raise PlanError("its file was not scored: `gemcut quantize --validate` does")
    if not is_source(model, plan):
        raise PlanError("its file was cut from another source than this one")
    return predicted_by(sensitivity, plan)


def predicted_by(sensitivity: Sensitivity | None, plan: Plan) -> tuple[Measured, ...]:
    """What a plan's file was found to lose, if this sensitivity predicted it; None: priors."""
    by = None if sensitivity is None else sensitivity_digest(sensitivity)
    return plan.measured if plan.sources.get("sensitivity") == by else ()


def is_source(model: Model, plan: Plan) -> bool:
    """Whether a plan was made from this source; one that does not say so may have been."""
    source = plan.sources.get("model")
    if source is None:
        return (plan.architecture, plan.weights) == (model.architecture, model.weights)
    return source == model_key(model) or (bool(model.files) and source == fingerprint(model))


def plan_types(model: Model, request: Request, importance: Importance | None = None) -> Plan:
    """The types alone, by priors."""
    weighted = frozenset(importance or ())
    task = Task(model, request, partial(metadata, model), weighted=weighted)
    return plan_model(task, alternatives=False).plan
