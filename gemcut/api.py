"""The verbs: what gemcut does, as functions. They cross the rooms; the command line calls them.

Each returns data or raises a GemcutError, and prints nothing. What is slow takes a `progress`
that is told how much was just done.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gemcut.convert import hub
from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.engine import Model, open_model
from gemcut.engine import ModelOptions, default_threads
from gemcut.errors import CheckpointError, OutputError, PlanError
from gemcut.eval.compare import Comparison, compare
from gemcut.eval.texts import Text
from gemcut.ggml import type_named
from gemcut.gguf_file import GGUFFile, TensorInfo
from gemcut.gguf_writer import file_size
from gemcut.inspection import Inspection, inspect
from gemcut.plan import METADATA_KEY, Plan
from gemcut.quantize import choose, stock
from gemcut.quantize.importance import Importance, read_importance
from gemcut.quantize.roles import role_of
from gemcut.quantize.writer import metadata, write_model
from gemcut.runtime.chat import Chat, conversation_options, open_chat

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


def open_source(source: str | Path, revision: str | None = None, offline: bool = False) -> Model:
    """A source's tensors and metadata, unread: a checkpoint's folder or a Hub id.

    Raises:
        CheckpointError: what the source lacks or what is wrong with it.
    """
    if hub.is_repository(str(source)):
        return open_model(Checkpoint(hub.fetch(str(source), revision, offline)))
    if Path(source).suffix == ".gguf":
        raise CheckpointError(
            f"{source}: a GGUF; wanted the folder of the checkpoint that it was made from"
        )
    return open_model(Checkpoint(Path(source)))


def make_plan(model: Model, target: Target, importance: Importance | None = None) -> Plan:
    """The types of all tensors for a target.

    Raises:
        PlanError: the target names no or an unsuitable type.
        BudgetError: no choice fits the size.
    """
    if target.plan is not None:
        return choose.refit(model, target.plan)
    weighted = importance is not None
    if target.size is not None:
        describe = partial(metadata, model)
        return choose.plan_size(model, target.size, describe, weighted)
    if target.bpw is not None:
        return choose.plan_bpw(model, target.bpw, weighted)
    if target.type is None:
        raise PlanError("say what the file is to be: a type, a size, bits per weight, or a plan")
    if stock.canonical(target.type) and not target.pure:
        return choose.plan_stock(model, target.type, weighted)
    return choose.plan_uniform(model, target.type, target.fallback, weighted)


def planned_size(model: Model, plan: Plan) -> int:
    """Bytes of the file that the plan makes; exact, and nothing is written."""
    return file_size(metadata(model, plan), choose.infos(model, plan))


def check_output(model: Model, output: Path) -> None:
    """Raise OutputError if writing there would hit a folder or a file of the model's source."""
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; wanted a file name")
    if output.resolve() in model.files:
        raise OutputError(f"{output}: belongs to the checkpoint; wanted another file's name")


def convert_checkpoint(
    model: Model,
    output: Path,
    kind: str = "bf16",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Write the model as a GGUF in BF16, F16 or F32.

    Raises:
        PlanError: another type.
        OutputError: the file cannot be written.
    """
    if kind.lower() not in FLOAT_TYPES:
        raise PlanError(f"convert writes {', '.join(FLOAT_TYPES)}, not {kind}; see quantize")
    return quantize_model(model, output, Target(kind), threads=threads, progress=progress)


def quantize_model(
    model: Model,
    output: Path,
    target: Target,
    importance: Importance | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Cut the model to a target and write it, straight from the source.

    Raises:
        PlanError, BudgetError: see `make_plan`.
        OutputError: the file cannot be written.
    """
    plan = make_plan(model, target, importance)
    check_output(model, output)
    write_model(model, plan, output, importance, threads or default_threads(), progress)
    return plan


def load_importance(path: Path | None) -> Importance | None:
    """An importance matrix's file, or None for no file. Raises GGUFError."""
    return None if path is None else read_importance(path)


def inspect_source(
    source: str | Path, revision: str | None = None, offline: bool = False
) -> Inspection:
    """What is in a checkpoint or a GGUF, by role; of a GGUF any architecture.

    Raises:
        CheckpointError, GGUFError: the source cannot be read.
    """
    if Path(source).is_file() or Path(source).suffix == ".gguf":
        with GGUFFile(Path(source)) as file:
            architecture = str(file.get("general.architecture", "unknown"))
            notes = ["carries the plan it was made from"] if METADATA_KEY in file.metadata else []
            tensors = [(role_of(info.name).name, info) for info in file.tensors.values()]
            return inspect(architecture, tensors, notes)
    model = open_source(source, revision, offline)
    infos = (TensorInfo(t.name, t.shape, type_named(t.source_type)) for t in model.tensors)
    return inspect(model.architecture, ((role_of(i.name).name, i) for i in infos), model.notes)


def load(
    path: Path,
    n_ctx: int | None = None,
    threads: int | None = None,
    gpu_layers: int = -1,
    sampling: Mapping[str, Any] | None = None,
    system: str | None = None,
    think: bool = False,
) -> Chat:
    """Load a GGUF for a conversation; close it, or use it as a context manager.

    Args:
        sampling: what to change of the sampling that the file recommends.

    Raises:
        EngineError: the file cannot be loaded or the context cannot be made.
    """
    options = partial(conversation_options, n_ctx=n_ctx, threads=threads)
    return open_chat(path, ModelOptions(gpu_layers), options, sampling or {}, system, think)


def evaluate(
    files: Sequence[Path],
    reference: Path | None,
    texts: Sequence[Path],
    n_ctx: int = 512,
    chunks: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Score files on texts, in lockstep; see `gemcut.eval.compare`.

    Raises:
        UsageError, TextError, GGUFError, EngineError: see `compare`.
    """
    read = [Text.read(path) for path in texts]
    return compare(files, reference, read, n_ctx, chunks, threads, progress)
