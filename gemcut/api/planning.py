"""From a source, and what a user has and wants, to a plan."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

from gemcut.api.sources import Source, model_of
from gemcut.api.words import Wanted, Where, paths_of
from gemcut.convert.model import Model
from gemcut.engine import ContextOptions
from gemcut.errors import PlanError, UsageError
from gemcut.plan import Measured, Plan
from gemcut.profile import Profile
from gemcut.quantize.identity import digest, fingerprint, model_key, sensitivity_digest
from gemcut.quantize.importance import Importance, importance_for
from gemcut.quantize.intent import Intent, understand
from gemcut.quantize.outcome import Outcome, Task
from gemcut.quantize.planner import plan_model
from gemcut.quantize.request import Request
from gemcut.quantize.rescale import pairs_of, rescale
from gemcut.quantize.statistics import Statistics, read_statistics
from gemcut.quantize.writer import Tell, carrying, metadata
from gemcut.runtime.machine.profiles import open_profile, this_machine, with_limits
from gemcut.sensitivity import Sensitivity

_CONTEXT = ContextOptions(n_ctx=8192, n_outputs=1)


def compare_plans(
    source: Source,
    *,
    imatrix: Where | None = None,
    sensitivity: Where | Sensitivity | None = None,
    validated: Where | Sequence[Where] = (),
    threads: int | None = None,
    tell: Tell = lambda line: None,
    alternatives: bool = True,
    **wanted: Unpack[Wanted],
) -> Outcome:
    """The best file for a machine and a use, and what else there is: nothing is loaded or written.

    Args:
        imatrix: importance that the file will be cut with.
        sensitivity: what was measured; None: priors.
        validated: plans of files that were scored, which correct the predictions.
        threads: of this machine, if the file is for it.
        tell: told in lines what is noteworthy about the plan.
        alternatives: find them; without, only how large the file is may decide, and no machine.

    Raises:
        BudgetError: no choice fits.
        UsageError: words that mean nothing, or contradict each other.
        PlanError, GGUFError, SensitivityError, ProfileError: an artefact is none, or another
            model's.
        EngineError: this machine cannot be measured.
    """
    model = model_of(source)
    intent = understand({name.replace("_", "-"): said for name, said in wanted.items()})
    if not (sensitivity is None or isinstance(sensitivity, Sensitivity)):
        sensitivity = Sensitivity.read(Path(sensitivity))
    machine = machine_of(intent, threads) if alternatives or needs_machine(intent) else None
    task = make_task(
        model,
        intent.request,
        sensitivity,
        None if imatrix is None else read_statistics(Path(imatrix)),
        machine,
        intent.options(trained_context(model)),
        [
            each
            for path in paths_of(validated)
            for each in measured_in(path, model, sensitivity, tell)
        ],
    )
    outcome = plan_model(task, alternatives)
    for note in outcome.notes:
        tell(note)
    return outcome


def needs_machine(intent: Intent) -> bool:
    """Whether places are to be chosen: not if all that was said is how large the file is."""
    request = intent.request
    bounded = request.size is not None or request.bpw is not None
    return intent.of_a_machine or request.min_speed is not None or not bounded


def machine_of(
    intent: Intent,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """The machine that was described; what was not is this one's.

    Args:
        progress: told types measured, and in all, where this machine was not measured before.

    Raises:
        UsageError: an unknown name, or limits that leave nothing.
        ProfileError: a file that is no profile.
        EngineError: llama.cpp is missing, or a device does not compute.
    """
    named = intent.machine
    profile = open_profile(named) if named else this_machine(threads, tell=progress)
    found = with_limits(profile, intent.vram, intent.ram)
    if intent.ram == 0 and not found.cards:
        raise UsageError("ram 0 puts everything on cards, and there is none: give --vram, too")
    return found


def measured_in(
    path: Where, model: Model, sensitivity: Sensitivity | None, tell: Tell = lambda line: None
) -> tuple[Measured, ...]:
    """What the plan of a scored file says. Raises PlanError: it says nothing of this model."""
    plan = Plan.read(Path(path))
    try:
        found = measured_of(model, plan, sensitivity)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error
    if not found:
        tell(f"{path}: was predicted by another sensitivity, so it corrects nothing here")
    return found


def trained_context(model: Model) -> int | None:
    """Tokens of a context that the model was made for, if that is known."""
    value = model.metadata.get(f"{model.architecture}.context_length")
    return value.data if value and isinstance(value.data, int) else None


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
