"""The whole way from a source to a cut file: measure the model, plan, write."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from gemcut.api.base import counted, remove_base
from gemcut.api.chain import PLAN, Effort, Measurements, StageProgress, measure_chain
from gemcut.api.cutting import Target, planned_files, quantize_model
from gemcut.convert.model import Model
from gemcut.outputs import check_outputs
from gemcut.plan import Plan
from gemcut.quantize.statistics import read_statistics
from gemcut.quantize.writer import Tell, carrying

Planner = Callable[[Measurements], Plan]


def chain_folder(output: Path) -> Path:
    """Where the artefacts of a result lie."""
    return output.with_name(f"{output.name}.gemcut")


def quantize_measured(
    model: Model,
    output: Path,
    planner: Planner,
    effort: Effort | None = None,
    split_size: int | None = None,
    restart: bool = False,
    keep: bool = False,
    progress: StageProgress | None = None,
    tell: Tell | None = None,
) -> tuple[Plan, dict[Path, int]]:
    """Measure a model, plan a file of it, and write it.

    Args:
        planner: makes the plan out of what was measured.
        restart: throw away what was interrupted; what is finished is used all the same.
        keep: leave the temporary Q8_0, as the reference of a validation.

    Returns:
        The plan, and the files, the one to load first, with their sizes in bytes.

    Raises:
        UsageError: no measurement takes so few minutes.
        OutputError: a file cannot be written, or unfinished work of something else lies there.
        PlanError: the plan does not fit the model.
        TextError, EngineError, CheckpointError: see `measure_chain`.
    """
    effort = effort or Effort()
    check_outputs([output], [*model.files, *effort.texts])
    folder = chain_folder(output)
    found = measure_chain(model, folder, effort, restart, progress, tell)
    plan, model = planner(found), carrying(model, read_statistics(found.imatrix))
    replace(plan, measured=found.measured).write(folder / PLAN)
    stage = partial(progress, output.name) if progress else None
    quantize_model(
        model,
        output,
        Target(plan=plan),
        found.importance,
        effort.threads,
        counted(stage, model.weights),
        split_size,
        restart,
        tell,
    )
    if not keep:
        remove_base(folder)
    return plan, planned_files(model, plan, output, split_size)
