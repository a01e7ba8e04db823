"""From a source and a target to a plan and to files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gemcut.api.planning import is_source, plan_types
from gemcut.convert.model import Model
from gemcut.engine import default_threads
from gemcut.errors import PlanError
from gemcut.gguf_layout import file_size
from gemcut.outputs import check_outputs
from gemcut.plan import Plan
from gemcut.quantize import choose, stock
from gemcut.quantize.identity import digest
from gemcut.quantize.importance import Importance, importance_for
from gemcut.quantize.request import Request
from gemcut.quantize.statistics import Statistics, read_statistics
from gemcut.quantize.writer import Tell, files, metadata, write_model

Progress = Callable[[int], None]  # told how much was just done

FLOAT_TYPES = ("bf16", "f16", "f32")


@dataclass(frozen=True)
class Target:
    """What a cut file is to be: exactly one of a type, a size, bits per weight, or a plan."""

    type: str | None = None  # a stock mixture or a ggml type
    pure: bool = False  # `type` is the bare ggml type, even if a mixture has its name
    fallback: bool = False  # a bare type may be replaced where rows do not fit it
    size: int | None = None  # bytes of the finished file
    bpw: float | None = None
    plan: Plan | None = None


def make_plan(model: Model, target: Target, importance: Importance | None = None) -> Plan:
    """The types of all tensors for a target.

    Raises:
        PlanError: the target names no or an unsuitable type.
        BudgetError: no choice fits the size.
    """
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
    model: Model,
    output: Path,
    kind: str = "bf16",
    threads: int | None = None,
    progress: Progress | None = None,
    split_size: int | None = None,
    restart: bool = False,
    tell: Tell | None = None,
) -> Plan:
    """Write the model as a GGUF in BF16, F16 or F32; the arguments are those of `quantize_model`.

    Raises:
        PlanError: another type.
        OutputError: the file cannot be written.
    """
    if kind.lower() not in FLOAT_TYPES:
        raise PlanError(f"convert writes {', '.join(FLOAT_TYPES)}, not {kind}; see quantize")
    target = Target(kind)
    return quantize_model(model, output, target, None, threads, progress, split_size, restart, tell)


def quantize_model(
    model: Model,
    output: Path,
    target: Target,
    importance: Importance | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    split_size: int | None = None,
    restart: bool = False,
    tell: Tell | None = None,
) -> Plan:
    """Cut the model to a target and write it, straight from the source.

    Interrupted, the same call goes on where it stopped.

    Args:
        split_size: bytes of tensors per file, in several files as llama.cpp splits; None: one.
        restart: throw away what an interrupted call left, and begin anew.
        tell: told in a line when work is continued, or is interrupted and can be continued.

    Raises:
        PlanError, BudgetError: see `make_plan`.
        OutputError: the file cannot be written, or unfinished work of something else lies there.
    """
    plan = make_plan(model, target, importance)
    check_outputs({output, *files(model, plan, output, split_size)}, model.files)
    threads = threads or default_threads()
    write_model(model, plan, output, importance, threads, progress, split_size, restart, tell)
    return plan


def load_importance(path: Path | None, model: Model) -> Importance | None:
    """The importance of a model's columns out of an imatrix file, or None for no file.

    Raises:
        GGUFError: not an imatrix, or damaged.
        PlanError: it was made for another model.
    """
    return None if path is None else importance_for(read_statistics(path), model.tensors)
