"""From a source and a target to a plan and to files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from gemcut.api.planning import compare_plans, is_source, plan_types
from gemcut.api.sources import Source, model_of, open_source
from gemcut.api.words import Size, Wanted, Where, bytes_of, path_of
from gemcut.convert.model import Model
from gemcut.cores import default_threads
from gemcut.errors import PlanError, UsageError
from gemcut.gguf_layout import file_size
from gemcut.outputs import check_outputs
from gemcut.plan import Plan
from gemcut.quantize import choose, stock
from gemcut.quantize.identity import digest
from gemcut.quantize.importance import Importance, importance_for
from gemcut.quantize.request import Request
from gemcut.quantize.statistics import Statistics, read_statistics
from gemcut.quantize.writer import Tell, carrying, files, metadata, write_model
from gemcut.sensitivity import Sensitivity

Progress = Callable[[int], None]  # told how much was just done

FLOAT_TYPES = ("bf16", "f16", "f32")


class Writing(TypedDict, total=False):
    """How a file is written: see `quantize_model`."""

    threads: int | None
    progress: Progress | None
    split_size: Size | None
    restart: bool
    tell: Tell | None


@dataclass(frozen=True)
class Target:
    """What a cut file is to be: exactly one of a type, a size, bits per weight, or a plan."""

    type: str | None = None  # a stock mixture or a ggml type
    pure: bool = False  # `type` is the bare ggml type, even if a mixture has its name
    fallback: bool = False  # a bare type may be replaced where rows do not fit it
    size: int | None = None  # bytes of the finished file
    bpw: float | None = None
    plan: Plan | None = None


@dataclass(frozen=True)
class Cut:
    """A file that was written, or several: their sizes in bytes, the one to load first."""

    plan: Plan
    files: Mapping[Path, int]

    @property
    def path(self) -> Path:
        """The file to load."""
        return next(iter(self.files))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    @property
    def bpw(self) -> float:
        """Bits per weight over all tensors."""
        return self.plan.bpw

    def to_dict(self) -> dict[str, Any]:
        """What was written, as JSON knows it."""
        paths = [str(path) for path in self.files]
        return {"files": paths, "size": self.size, "bpw": self.bpw, "plan": self.plan.to_dict()}


def make_plan(
    source: Source,
    target: Target | str | None = None,
    importance: Importance | None = None,
    *,
    imatrix: Where | None = None,
    sensitivity: Where | Sensitivity | None = None,
    validated: Where | Sequence[Where] = (),
    threads: int | None = None,
    tell: Tell | None = None,
    **wanted: Unpack[Wanted],
) -> Plan:
    """The types of all tensors, and their places if the file is for a machine.

    Args:
        target: a stock mixture or a ggml type; None: what is `wanted` decides.
        importance, imatrix: of the columns, as it is or in a file.
        sensitivity, validated, threads, tell, wanted: see `compare_plans`.

    Raises:
        PlanError: the target names no or an unsuitable type, or an artefact is another model's.
        BudgetError: no choice fits.
        UsageError: words that mean nothing, or contradict each other.
        GGUFError, SensitivityError, EngineError: see `compare_plans`.
    """
    model = model_of(source)
    if target is None:
        if importance is not None:
            raise UsageError("importance goes with a type; what is planned takes an imatrix file")
        return compare_plans(
            model,
            imatrix=imatrix,
            sensitivity=sensitivity,
            validated=validated,
            threads=threads,
            tell=tell or (lambda line: None),
            alternatives=False,
            **wanted,
        ).plan
    if wanted or sensitivity or validated:
        raise UsageError(f"a plan of {target} leaves nothing to choose: give it, or what is wanted")
    if imatrix is not None:
        importance = load_importance(imatrix, model)
    return _planned(model, Target(target) if isinstance(target, str) else target, importance)


def _planned(model: Model, target: Target, importance: Importance | None) -> Plan:
    if target.plan is not None:
        return choose.refit(model, target.plan)
    if target.size is not None or target.bpw is not None:
        return plan_types(model, Request(target.size, target.bpw), importance)
    if target.type is None:
        raise PlanError("say what the file is to be: a type, a size, bits per weight, or a plan")
    weighted = importance is not None
    if stock.canonical(target.type) and not target.pure:
        return choose.plan_stock(model, target.type, weighted)
    return choose.plan_uniform(model, target.type, target.fallback, weighted)


def differences(model: Model, plan: Plan, statistics: Statistics | None) -> Iterator[str]:
    """Lines on what a plan was made from and is applied to, where these are not the same.

    Its types fit all the same; what it predicts may not hold.

    Args:
        statistics: of the importance that the file is cut with.
    """
    imatrix = plan.sources.get("imatrix")
    if not is_source(model, plan):
        yield "the plan was made from another source: its types fit, what it predicts may not hold"
    if imatrix and statistics is None:
        yield "the plan was made for a file that is cut with an importance matrix: give --imatrix"
    elif imatrix and statistics and imatrix != digest(statistics):
        yield "the plan was made with another importance matrix than the file is cut with"


def planned_size(model: Model, plan: Plan) -> int:
    """Bytes of the one file that the plan makes; exact, and nothing is written."""
    return file_size(metadata(model, plan), choose.infos(model, plan))


def planned_files(
    model: Model, plan: Plan, output: Path, split_size: int | None = None
) -> dict[Path, int]:
    """The files that the plan makes, the one to load first, with their exact sizes in bytes."""
    return {path: made.size for path, made in files(model, plan, output, split_size).items()}


def convert_checkpoint(
    source: Source,
    output: Where,
    kind: str = "bf16",
    **how: Unpack[Writing],
) -> Cut:
    """Write the model as a GGUF in BF16, F16 or F32.

    Args:
        how: threads, progress, split_size, restart and tell, as `quantize_model` takes them.

    Raises:
        PlanError: another type.
        OutputError: the file cannot be written.
    """
    if kind.lower() not in FLOAT_TYPES:
        raise PlanError(f"convert writes {', '.join(FLOAT_TYPES)}, not {kind}; see quantize")
    # Experts with types of their own go back into stacks, as `gemcut convert` has it.
    model = source if isinstance(source, Model) else open_source(source, restack=True)
    return quantize_model(model, output, kind, **how)


def quantize_model(
    source: Source,
    output: Where,
    target: Target | Plan | str,
    importance: Importance | None = None,
    *,
    imatrix: Where | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    split_size: Size | None = None,
    restart: bool = False,
    tell: Tell | None = None,
) -> Cut:
    """Cut the model to a target and write it, straight from the source.

    Interrupted, the same call goes on where it stopped.

    Args:
        target: a plan, or as `make_plan` takes it.
        importance, imatrix: what columns are weighted by: as it is, or in a file, which the result
            then names.
        progress: told how many weights were just done.
        split_size: bytes of tensors per file, in several files as llama.cpp splits; None: one.
        restart: throw away what an interrupted call left, and begin anew.
        tell: told in a line when work is continued, or is interrupted and can be continued.

    Raises:
        PlanError, BudgetError: see `make_plan`.
        UsageError: fewer than one thread, or a size that is none.
        OutputError: the file cannot be written, or unfinished work of something else lies there.
    """
    model, path = model_of(source), Path(output)
    most = None if split_size is None else bytes_of(split_size)
    told = tell or (lambda line: None)
    statistics = None if imatrix is None else read_statistics(Path(imatrix))
    if isinstance(target, Plan):
        for line in differences(model, target, statistics):
            told(line)
        target = Target(plan=target)
    if statistics:
        importance = importance_for(statistics, model.tensors)
        model = carrying(model, statistics)
    plan = make_plan(model, target, importance)
    sizes = planned_files(model, plan, path, most)
    check_outputs({path, *sizes}, [*model.files, path_of(imatrix)])
    threads = default_threads() if threads is None else threads
    if threads < 1:
        raise UsageError(f"threads is {threads}, wanted 1 or more")
    write_model(model, plan, path, importance, threads, progress, most, restart, tell)
    return Cut(plan, sizes)


def load_importance(path: Where | None, model: Model) -> Importance | None:
    """The importance of a model's columns out of an imatrix file, or None for no file.

    Raises:
        GGUFError: not an imatrix, or damaged.
        PlanError: it was made for another model.
    """
    return None if path is None else importance_for(read_statistics(Path(path)), model.tensors)
