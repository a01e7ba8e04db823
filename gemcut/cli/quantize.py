"""`gemcut quantize`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemcut.cli import common, planning
from gemcut.cli.common import (
    FILE,
    as_json,
    bar,
    dry_run,
    output_options,
    print_json,
    say,
    source_options,
    stages,
    steps,
    threads,
    written,
)
from gemcut.cli.outcome import types_by_role
from gemcut.cli.planning import Asked, Known, planning_options
from gemcut.plan import Plan

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.api import Measurements, Target
    from gemcut.convert.model import Model
    from gemcut.plan import Measured
    from gemcut.profile import Profile
    from gemcut.quantize.importance import Importance

_MEASURING = "`gemcut quantize --measure` in place of --imatrix and --sensitivity"
_NOT_OLLAMAS = "--modelfile is for Ollama, which has no --per-expert"


@dataclass(frozen=True)
class _Job:
    """What was asked for."""

    output: Path
    asked: Asked
    target: "Target"  # a type or a plan; else it is planned
    save_plan: Path | None
    modelfile: Path | None
    measure: bool
    minutes: float | None
    validate: bool
    texts: tuple[Path, ...]
    split_size: int | None
    restart: bool
    threads: int | None

    @property
    def beside(self) -> tuple[Path | None, Path | None]:
        """What is written beside the model."""
        return self.save_plan, self.modelfile

    @property
    def planned(self) -> bool:
        """Whether types are chosen here."""
        return self.target.type is None and self.target.plan is None


@click.command("quantize")
@source_options
@output_options
@click.option("--type", "kind", help="a mixture of llama.cpp (Q4_K_M, ...) or a ggml type (q4_k)")
@click.option("--plan", "plan_file", type=FILE, help="a plan.json made before")
@click.option(
    "--pure", is_flag=True, help="--type is a bare ggml type, even if a mixture has its name"
)
@click.option(
    "--fallback", is_flag=True, help="a bare type may be replaced where rows do not fit it"
)
@planning_options
@click.option("--measure", is_flag=True, help="first measure SRC; kept beside the output")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="of --measure, at most"
)
@click.option("--validate", is_flag=True, help="then score the file: predicted beside measured")
@click.option(
    "--text", "texts", type=FILE, multiple=True, help="to measure and validate with; repeat"
)
@click.option("--save-plan", type=FILE, help="write the plan here, even with --dry-run")
@click.option("--modelfile", type=FILE, help="write here what Ollama imports the result by")
@common.frugal
@threads
@dry_run
@as_json
def command(
    source: str,
    output: Path,
    split_size: int | None,
    restart: bool,
    kind: str | None,
    plan_file: Path | None,
    pure: bool,
    fallback: bool,
    asked: Asked,
    measure: bool,
    minutes: float | None,
    validate: bool,
    texts: tuple[Path, ...],
    save_plan: Path | None,
    modelfile: Path | None,
    frugal: bool,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
    **reading: Any,
) -> None:
    """Cut SRC (a checkpoint's folder, a Hub id, or a GGUF) and write it as a GGUF.

    Say for which machine (--vram, --ram, --machine, -c; what is not said is this one's), or how
    large it may be (--size, --bpw), or both; or else a --type, or a --plan. No 16-bit file is made
    in between.
    """
    _check(kind, plan_file, pure or fallback, asked, measure)
    if modelfile and asked.intent.request.per_expert:
        raise click.UsageError(_NOT_OLLAMAS)
    _check_measuring(asked, measure, minutes, validate, texts, frugal, dry_run)
    from gemcut import api
    from gemcut.outputs import check_outputs

    if modelfile:
        from gemcut.modelfile import path_text

        path_text(output)  # what cannot be named there is refused before the work
    read = [*asked.files, plan_file, *texts]
    check_outputs([output, save_plan, modelfile], read)
    scratch = common.scratch(output, frugal)
    model = api.open_source(source, scratch=scratch, fetched=common.downloads(), **reading)
    for note in model.notes:
        say(note)
    target = api.Target(kind, pure, fallback, plan=Plan.read(plan_file) if plan_file else None)
    job = _Job(
        output,
        asked,
        target,
        save_plan,
        modelfile,
        measure,
        minutes,
        validate,
        texts,
        split_size,
        restart,
        threads,
    )
    plan, files = _measured(model, job) if measure else _cut(model, job, read, dry_run)
    saved = [path for path in (save_plan or plan_file,) if path]
    if modelfile and not dry_run:
        _write_modelfile(next(iter(files)), modelfile)
    found = _validated(model, next(iter(files)), plan, job, saved) if validate else None
    if as_json:
        result = {"files": [str(path) for path in files], "size": sum(files.values())}
        result |= {"measured": vars(found)} if found else {}
        print_json({"output": str(output), "bpw": plan.bpw, "plan": plan.to_dict()} | result)
    else:
        say(f"{written(files, dry_run)}, {plan.bpw:.2f} bits per weight")


def _write_modelfile(model: Path, path: Path) -> None:
    from gemcut import api
    from gemcut.artefact import write_text

    write_text(path, api.ollama_modelfile(model, path.parent))


def _check(
    kind: str | None, plan_file: Path | None, of_type: bool, asked: Asked, measure: bool
) -> None:
    """Raise UsageError unless the options say one thing."""
    given = [kind is not None, plan_file is not None, asked.said or measure]
    if sum(given) != 1:
        raise click.UsageError(
            "say exactly one of --type, --plan, and what to plan for (--vram, --size, ...)"
        )
    if of_type and kind is None:
        raise click.UsageError("--pure and --fallback go with --type")


def _check_measuring(
    asked: Asked,
    measure: bool,
    minutes: float | None,
    validate: bool,
    texts: tuple[Path, ...],
    frugal: bool,
    dry_run: bool,
) -> None:
    """Raise UsageError for what does not go with measuring, or only with it."""
    if measure and (asked.imatrix or asked.sensitivity):
        raise click.UsageError("--measure makes both: it goes without --imatrix and --sensitivity")
    if measure and frugal:
        raise click.UsageError("--measure reads the weights three times: it goes without --frugal")
    if (measure or validate) and dry_run:
        raise click.UsageError("--measure and --validate write files: they go without --dry-run")
    if minutes and not measure:
        raise click.UsageError("--minutes goes with --measure")
    if texts and not (measure or validate):
        raise click.UsageError("--text is for --measure and --validate")


def _machine(job: _Job) -> "Profile | None":
    from gemcut.api.planning import needs_machine

    intent = job.asked.intent
    return planning.machine_for(intent, job.threads) if needs_machine(intent) else None


def _planned(model: "Model", job: _Job, found: Known, machine: "Profile | None") -> Plan:
    """Choose types, and places if they will run somewhere that is known."""
    intent = job.asked.intent
    made = planning.task(model, intent, found, intent.request, machine)
    outcome = planning.outcome_of(made, alternatives=False)
    if outcome.worth:
        say(f"types per expert: {outcome.worth}")
    planning.say_priors(made, _MEASURING)
    return outcome.plan


def _cut(
    model: "Model", job: _Job, read: list[Path | None], dry_run: bool
) -> tuple[Plan, dict[Path, int]]:
    """Plan, and write: the plan, and the files with their sizes."""
    from gemcut import api
    from gemcut.outputs import check_outputs

    found = planning.known(job.asked, model)
    model, importance = planning.weighted(model, found)
    if job.planned:
        plan = _planned(model, job, found, _machine(job))
    else:
        plan = _given(model, job, found, importance)
    if job.modelfile and any(entry.experts for entry in plan.tensors.values()):
        raise click.UsageError(_NOT_OLLAMAS)
    files = api.planned_files(model, plan, job.output, job.split_size)
    check_outputs([*files, *job.beside], [*read, *model.files])
    _announce(plan, job.save_plan)
    if dry_run:
        return plan, files
    with bar("quantizing", model.weights) as progress:
        api.quantize_model(
            model,
            job.output,
            api.Target(plan=plan),
            importance,
            threads=job.threads,
            progress=progress,
            split_size=job.split_size,
            restart=job.restart,
            tell=say,
        )
    return plan, files


def _given(model: "Model", job: _Job, found: Known, importance: "Importance | None") -> Plan:
    """The plan of a type, or one that was made before."""
    from gemcut import api

    plan = api.make_plan(model, job.target, importance)
    if job.target.plan:
        for line in api.differences(model, plan, found.statistics):
            say(line)
    return plan


def _measured(model: "Model", job: _Job) -> tuple[Plan, dict[Path, int]]:
    """Measure, plan, and write: the plan, and the files with their sizes."""
    from gemcut import api
    from gemcut.outputs import check_outputs
    from gemcut.quantize.statistics import read_statistics

    check_outputs([job.output, *job.beside], [*job.asked.files, *job.texts, *model.files])
    intent, machine = job.asked.intent, _machine(job)
    planning.check_budget(planning.task(model, intent, Known(), intent.request, machine))

    def planner(found: "Measurements") -> Plan:
        measured = (*found.measured, *planning.measured_in(job.asked, model, found.sensitivity))
        known = Known(read_statistics(found.imatrix), found.sensitivity, measured)
        plan = _planned(model, job, known, machine)
        _announce(plan, job.save_plan)
        return plan

    effort = api.Effort(job.texts, job.minutes, job.threads, room=intent.request.size or 0)
    with stages() as progress:
        cut = api.quantize_measured(
            model,
            job.output,
            planner,
            effort,
            split_size=job.split_size,
            restart=job.restart,
            keep=job.validate,
            progress=progress,
            tell=say,
        )
    return cut.plan, dict(cut.files)


def _validated(
    model: "Model", output: Path, plan: Plan, job: _Job, saved: list[Path]
) -> "Measured":
    """Score the file, and note it in the plans that are kept."""
    from gemcut import api

    folder = api.chain_folder(job.output)
    with steps("validating") as progress:
        found = api.validate(
            model,
            output,
            plan,
            job.texts,
            threads=job.threads,
            folder=folder if job.measure else None,
            progress=progress,
            tell=say,
        )
    api.record(found, [*saved, *([folder / "plan.json"] if job.measure else [])])
    if job.measure:
        api.remove_base(folder)
    predicted = "" if found.predicted is None else f" (predicted: {found.predicted:.3g})"
    say(
        f"measured: KL divergence {found.kld:.3g} ± {found.se:.1g}{predicted}, "
        f"held against {found.reference} on {found.chunks} chunks of text"
    )
    return found


def _announce(plan: Plan, save_plan: Path | None) -> None:
    """Say what is about to be written, and keep the plan."""
    for line in types_by_role(plan):
        say(line)
    if plan.predicted:
        say(planning.described(plan))
    if save_plan:
        plan.write(save_plan)
