"""The whole way from a source to a cut file: measure the model, plan, write."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from gemcut.api.base import StageProgress, counted, remove_base
from gemcut.api.chain import PLAN, Effort, Measurements, measure_chain
from gemcut.api.cutting import Cut, Target, quantize_model
from gemcut.api.sources import Source, model_of
from gemcut.api.words import Size, Where, paths_of
from gemcut.lock import alone_in
from gemcut.outputs import check_outputs
from gemcut.plan import Plan
from gemcut.quantize.statistics import read_statistics
from gemcut.quantize.writer import Tell, carrying

Planner = Callable[[Measurements], Plan]


def chain_folder(output: Where) -> Path:
    """Where the artefacts of a result lie."""
    output = Path(output)
    return output.with_name(f"{output.name}.gemcut")


def quantize_measured(
    source: Source,
    output: Where,
    planner: Planner,
    effort: Effort | None = None,
    *,
    split_size: Size | None = None,
    restart: bool = False,
    keep: bool = False,
    progress: StageProgress | None = None,
    tell: Tell | None = None,
) -> Cut:
    """Measure a model, plan a file of it, and write it.

    Args:
        planner: makes the plan out of what was measured.
        restart: throw away what was interrupted; what is finished is used all the same.
        keep: leave the temporary Q8_0, as the reference of a validation.

    Raises:
        UsageError: no measurement takes so few minutes.
        OutputError: a file cannot be written, or unfinished work of something else lies there.
        PlanError: the plan does not fit the model.
        TextError, EngineError, CheckpointError: see `measure_chain`.
    """
    model, output, effort = model_of(source), Path(output), effort or Effort()
    check_outputs([output], [*model.files, *paths_of(effort.texts)])
    folder = chain_folder(output)
    with alone_in(folder):
        found = measure_chain(model, folder, effort, restart, progress, tell)
        plan = planner(found)
        replace(plan, measured=found.measured).write(folder / PLAN)
        stage = partial(progress, output.name) if progress else None
        cut = quantize_model(
            carrying(model, read_statistics(found.imatrix)),
            output,
            Target(plan=plan),
            found.importance,
            threads=effort.threads,
            progress=counted(stage, model.weights),
            split_size=split_size,
            restart=restart,
            tell=tell,
        )
        if not keep:
            remove_base(folder)
    return cut
