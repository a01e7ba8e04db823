"""What `plan` and `quantize` share: the options of a plan, and making one from them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemcut.cli.common import FILE, console, say, steps
from gemcut.errors import UsageError

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.convert.model import Model
    from gemcut.plan import Measured, Plan
    from gemcut.profile import Profile
    from gemcut.quantize.importance import Importance
    from gemcut.quantize.intent import Intent
    from gemcut.quantize.outcome import Outcome, Task
    from gemcut.quantize.request import Request
    from gemcut.quantize.statistics import Statistics
    from gemcut.sensitivity import Sensitivity


@dataclass(frozen=True)
class Asked:
    """What the options of a plan said."""

    intent: "Intent"
    said: bool  # whether any of them was given
    sensitivity: Path | None
    imatrix: Path | None
    validated: tuple[Path, ...]
    file: Path | None  # with the intent

    @property
    def files(self) -> list[Path | None]:
        """What is read for the plan."""
        return [self.sensitivity, self.imatrix, *self.validated, self.file]


# (name in an intent, flags, settings of click)
_INTENT: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
    ("vram", ("--vram",), {"help": "of each card: 12G or 12G,24G (default: this machine's)"}),
    ("ram", ("--ram",), {"help": "of the host (default: this machine's); 0: all on cards"}),
    ("machine", ("--machine",), {"help": "plan for a rtx-4070+ddr5-5600, or a machine.json"}),
    ("context", ("-c", "--context"), {"help": "tokens over all sequences (default: 32k)"}),
    ("kv", ("--kv",), {"metavar": "TYPE", "help": "of keys and values (default: f16)"}),
    ("cache-type-k", ("-ctk", "--cache-type-k"), {"metavar": "TYPE", "help": "of keys"}),
    ("cache-type-v", ("-ctv", "--cache-type-v"), {"metavar": "TYPE", "help": "of values"}),
    ("parallel", ("--parallel",), {"type": int, "help": "sequences at a time (default: 1)"}),
    ("ubatch", ("-ub", "--ubatch"), {"help": "tokens computed at once (default: 512)"}),
    ("size", ("--size",), {"help": "the finished file is never larger (14G, 5M, bytes)"}),
    ("bpw", ("--bpw",), {"type": float, "help": "bits per weight, at most"}),
    ("min-speed", ("--min-speed",), {"type": float, "help": "tokens per second, predicted"}),
    ("max-kld", ("--max-kld",), {"type": float, "help": "KL divergence, predicted, at most"}),
    ("prefer", ("--prefer",), {"metavar": "[speed|balance|quality]", "help": "the point to take"}),
    ("types", ("--types",), {"metavar": "[all|default|A,B,...]", "help": "to choose from"}),
    ("rules", ("--rule",), {"multiple": True, "help": "'blk.*.attn_*=q6_k', '...=cpu'; repeat"}),
    ("floors", ("--floor",), {"multiple": True, "help": "least for a role: experts=q4_k; repeat"}),
    (
        "per-expert",
        ("--per-expert",),
        {"is_flag": True, "help": "types of single experts where that helps; for gemcut alone"},
    ),
    ("plain", ("--plain",), {"is_flag": True, "help": "no padding, no splitting of tensors"}),
)
_FILES = (
    click.option("--imatrix", type=FILE, help="an importance matrix (GGUF or .dat)"),
    click.option("--sensitivity", type=FILE, help="what `gemcut measure` wrote; else priors"),
    click.option(
        "--validated", type=FILE, multiple=True, help="plans of files that were scored; repeat"
    ),
    click.option("--intent", "file", type=FILE, help="a TOML file that says any of these"),
)


def planning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a plan; the command gets them as `asked`."""

    @wraps(command)
    def bundled(**given: Any) -> Any:
        words = {name: given.pop(_parameter(name)) for name, _, _ in _INTENT}
        files = {name: given.pop(name) for name in ("imatrix", "sensitivity", "validated", "file")}
        return command(asked=_asked(words, **files), **given)

    found: Callable[..., Any] = bundled
    for option in reversed(_FILES):
        found = option(found)
    for name, flags, settings in reversed(_INTENT):
        found = click.option(*flags, _parameter(name), **settings)(found)
    return found


def _parameter(name: str) -> str:
    return name.replace("-", "_")


def _asked(
    words: dict[str, Any],
    imatrix: Path | None,
    sensitivity: Path | None,
    validated: tuple[Path, ...],
    file: Path | None,
) -> Asked:
    from gemcut.quantize.intent import overriding, read_intent, understand

    said = {n: raw for n, raw in words.items() if not (raw is None or raw is False or raw == ())}
    if "rules" in said:
        said["rules"] = list(said["rules"])
    if "floors" in said:
        said["floors"] = dict(_pair(each) for each in said["floors"])
    intent = understand(overriding(read_intent(file) if file else {}, said))
    any_said = bool(said or sensitivity or validated or file)
    return Asked(intent, any_said, sensitivity, imatrix, validated, file)


def _pair(text: str) -> tuple[str, str]:
    role, equals, kind = text.partition("=")
    if not (role and equals and kind):
        raise UsageError(f"floor {text!r:.60}: wanted ROLE=TYPE, as experts=q4_k")
    return role.strip(), kind.strip()


@dataclass(frozen=True)
class Known:
    """What is known of a model when its file is planned."""

    statistics: "Statistics | None" = None
    sensitivity: "Sensitivity | None" = None
    measured: Sequence["Measured"] = ()


def known(asked: Asked, model: "Model") -> Known:
    """Read what was measured of a model.

    Raises:
        GGUFError, SensitivityError, PlanError: a file is not what it should be.
    """
    from gemcut.quantize.statistics import read_statistics
    from gemcut.sensitivity import Sensitivity

    sensitivity = Sensitivity.read(asked.sensitivity) if asked.sensitivity else None
    return Known(
        read_statistics(asked.imatrix) if asked.imatrix else None,
        sensitivity,
        measured_in(asked, model, sensitivity),
    )


def measured_in(
    asked: Asked, model: "Model", sensitivity: "Sensitivity | None"
) -> list["Measured"]:
    """What the plans of scored files say. Raises PlanError: one says nothing of this model."""
    from gemcut.api import planning

    found = (planning.measured_in(path, model, sensitivity, say) for path in asked.validated)
    return [each for plan in found for each in plan]


def weighted(model: "Model", found: Known) -> "tuple[Model, Importance | None]":
    """The model, which then says which importance it is cut with, and that importance."""
    from gemcut import api
    from gemcut.quantize.importance import importance_for
    from gemcut.quantize.writer import carrying

    if found.statistics is None:
        return model, None
    importance = importance_for(found.statistics, model.tensors)
    if line := api.missing_importance(model, importance):
        say(line)
    return carrying(model, found.statistics), importance


def task(
    model: "Model", intent: "Intent", found: Known, request: "Request", machine: "Profile | None"
) -> "Task":
    """All that a plan is made from."""
    from gemcut import api
    from gemcut.api.planning import trained_context

    context = intent.options(trained_context(model))
    return api.make_task(
        model, request, found.sensitivity, found.statistics, machine, context, found.measured
    )


def check_budget(made: "Task") -> None:
    """Plan with as much as can be known before anything is measured.

    Raises:
        BudgetError, PlanError: nothing will fit, or a rule is about no tensor.
    """
    from gemcut.quantize.planner import plan_model

    names = frozenset(tensor.name for tensor in made.model.tensors)
    request = replace(made.request, max_kld=None, per_expert=False)
    with working("checking that something fits"):
        plan_model(replace(made, request=request, weighted=names), alternatives=False)


def machine_for(intent: "Intent", threads: int | None = None) -> "Profile":
    """The machine that was described, while a bar shows what of this one is measured.

    Raises:
        as `gemcut.api.planning.machine_of`.
    """
    from gemcut.api.planning import machine_of

    with steps("measuring this machine") as tell:
        return machine_of(intent, threads, tell)


def outcome_of(made: "Task", alternatives: bool) -> "Outcome":
    """Plan, while a line on the terminal says so; notes are said."""
    from gemcut.api.planning import trained_context
    from gemcut.quantize.planner import plan_model

    trained, tokens = trained_context(made.model), made.context.n_ctx // made.context.n_seq
    if made.machine and trained and tokens > trained:
        say(f"a context of {tokens} tokens: the model was made for {trained}")
    with working("planning"):
        outcome = plan_model(made, alternatives)
    for note in outcome.notes:
        say(note)
    return outcome


def say_priors(made: "Task", command: str) -> None:
    """Say, if that is so, that nothing was measured, and what would be gained by it."""
    if made.sensitivity is None:
        say(
            "priors were used: what errors cost is believed, to a factor of about two; measuring "
            f"makes a better file of the same size: {command}"
        )


def described(plan: "Plan") -> str:
    """A plan in a line."""
    from gemcut.sizes import format_size

    said = plan.predicted
    text = f"planned: {format_size(plan.size)} of tensors, {plan.bpw:.2f} bits per weight"
    if kld := said.get("kld_expected"):
        text += f"; predicted: KL divergence {kld:.3g} ±{(said.get('kld_se') or 0) / kld:.0%}"
    if without := said.get("kld_without_experts"):
        text += f" ({without:.3g} without types per expert)"
    if said.get("decode"):
        text += f", {said['decode']:.3g} tokens/s ±{said.get('speed_doubt') or 0:.0%}"
    return text


@contextmanager
def working(what: str) -> Iterator[None]:
    """A sign of life on the terminal while something takes seconds."""
    talk = console()
    if not talk.is_terminal:
        yield
        return
    with talk.status(what):
        yield


def plainly(request: "Request") -> "Request":
    """The request without padding and splitting."""
    return replace(request, plain=True)
