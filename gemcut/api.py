"""The verbs: what gemcut does, as functions. They cross the rooms; the command line calls them.

Each returns data or raises a GemcutError, and prints nothing. What is slow takes a `progress`
that is told how much was just done.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gemcut import llama
from gemcut.convert import hub
from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.engine import open_model
from gemcut.convert.families import FAMILIES
from gemcut.convert.family import Family
from gemcut.convert.gguf_source import open_gguf
from gemcut.convert.model import Model, Reading
from gemcut.engine import ModelOptions, default_threads
from gemcut.errors import OutputError, PlanError
from gemcut.eval.compare import Comparison, compare
from gemcut.eval.texts import Text, cut
from gemcut.ggml import type_named
from gemcut.gguf_file import TensorInfo
from gemcut.gguf_layout import file_size
from gemcut.gguf_parts import GGUFParts
from gemcut.inspection import Inspection, Origin, inspect
from gemcut.lattice import lattice_by_role
from gemcut.plan import Plan
from gemcut.quantize import choose, stock
from gemcut.quantize.calibration import NAME as CALIBRATION
from gemcut.quantize.calibration import calibration_text
from gemcut.quantize.collect import Unfinished, collect
from gemcut.quantize.importance import Importance, importance_for
from gemcut.quantize.measure import Probing, Request, measure_model
from gemcut.quantize.probe import Sample
from gemcut.quantize.roles import role_of
from gemcut.quantize.statistics import Statistics, merged, read_statistics, write_statistics
from gemcut.quantize.writer import Tell, files, metadata, write_model
from gemcut.runtime.chat import Chat, conversation_options, open_chat
from gemcut.runtime.template import Template
from gemcut.sensitivity import Sensitivity

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


def open_source(
    source: str | Path,
    revision: str | None = None,
    offline: bool = False,
    scratch: Path | None = None,
    fetched: hub.Progress | None = None,
    ignore: Sequence[str] = (),
    requantize: bool = False,
    nonfinite: bool = False,
    pre_tokenizer: str | None = None,
) -> Model:
    """A source's tensors and metadata, unread: a checkpoint's folder, a Hub id, or a GGUF.

    Args:
        scratch: fetch a Hub id's weights file by file into this folder, each to be removed when
            it is done, rather than all into the cache.
        fetched: told what is fetched, and bytes done and in all.
        ignore, requantize, nonfinite, pre_tokenizer: see `convert.model.Reading`.

    Raises:
        CheckpointError, GGUFError: what the source lacks or what is wrong with it.
    """
    reading = Reading(ignore, requantize, nonfinite, pre_tokenizer)
    if hub.is_repository(str(source)):
        place = hub.Place(str(source), revision)
        checkpoint = Checkpoint(hub.open_repository(place, offline, scratch, fetched))
    elif _is_gguf(source):
        return open_gguf(Path(source), reading)
    else:
        checkpoint = Checkpoint(Path(source))
    return open_model(checkpoint, reading)


def _is_gguf(source: str | Path) -> bool:
    return Path(source).suffix == ".gguf" or Path(source).is_file()


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
    """Bytes of the one file that the plan makes; exact, and nothing is written."""
    return file_size(metadata(model, plan), choose.infos(model, plan))


def planned_files(
    model: Model, plan: Plan, output: Path, split_size: int | None = None
) -> dict[Path, int]:
    """The files that the plan makes, the one to load first, with their exact sizes in bytes."""
    return {path: made.size for path, made in files(model, plan, output, split_size).items()}


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
    for path in (output, *files(model, plan, output, split_size)):
        check_output(model, path)
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


def collect_importance(
    path: Path,
    texts: Sequence[Path],
    output: Path,
    n_ctx: int = 512,
    chunks: int | None = None,
    threads: int | None = None,
    options: ModelOptions | None = None,
    parse_special: bool = False,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    tell: Tell | None = None,
) -> Statistics:
    """Run text through a GGUF, and write what its matrices were multiplied with as an imatrix.

    Args:
        texts: read one after the other; none: the built-in text.
        chunks: read at most so many, of n_ctx tokens each.
        parse_special: read "<bos>" and the like as tokens.
        resume: continue what an interrupted call left.
        progress: told chunks done, and in all.
        tell: told in a line when work is continued, or is interrupted and can be continued.

    Raises:
        TextError: a text cannot be read, or all together are shorter than two chunks.
        UsageError, OutputError, EngineError: see `gemcut.quantize.collect`.
        GGUFError: not a model.
    """
    source = open_gguf(path, Reading(requantize=True))
    check_output(source, output)
    if output.resolve() in {text.resolve() for text in texts}:
        raise OutputError(f"{output}: is a text to be read; wanted another file's name")
    with llama.Model.load(path, options) as model:
        read = [Text.read(text) for text in texts] or [calibration(model)]
        special = parse_special or not texts
        tokens = np.concatenate([model.tokenize(t.content, True, special) for t in read])
        bos = model.bos if model.add_bos else None
        cut_ = cut(tokens, n_ctx, chunks, bos, ", ".join(text.name for text in read))
        unfinished = Unfinished(output, source.identity, cut_)
        found = collect(model, cut_, threads, progress, unfinished, resume, tell)
    statistics = replace(found, datasets=tuple(text.name for text in read))
    write_statistics(output, statistics)
    unfinished.remove()
    return statistics


def calibration(model: llama.Model) -> Text:
    """The built-in text, its conversations framed as the model wants them."""
    source, eos = model.chat_template, model.eos
    # No BOS within the text, and no date: the text is the same tomorrow.
    end = "" if eos is None else model.piece(eos, special=True).decode(errors="replace")
    template = Template(source, eos=end, today=datetime(2026, 1, 1)) if source else None
    return Text.of(CALIBRATION, calibration_text(template))


def merge_importance(paths: Sequence[Path], output: Path) -> Statistics:
    """Add imatrix files up into one, as if all their texts had been read.

    Raises:
        GGUFError: not an imatrix, or damaged.
        PlanError: they are of different models.
        OutputError: the file cannot be written.
    """
    statistics = merged([read_statistics(path) for path in paths])
    write_statistics(output, statistics)
    return statistics


def measure_sensitivity(
    model: Model,
    output: Path,
    imatrix: Path | None = None,
    request: Request | None = None,
    threads: int | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    tell: Tell | None = None,
) -> Sensitivity:
    """Measure what every tensor loses in every type, and write it as a sensitivity.json.

    Args:
        imatrix: importance of columns and experts; without it, all count alike and the types
            that need it are left out.
        request: what is measured, how thoroughly, and whether what errors cost the model is
            probed (see `probing`) or stays a prior.
        resume: go on where an interrupted call stopped.
        progress: told how many tensors are done, and how many there are.
        tell: told how long it will take, and what becomes of an interrupted run.

    Raises:
        UsageError, GGUFError, PlanError, OutputError, EngineError, CheckpointError, TextError: see
            `quantize.measure.measure_model`.
    """
    check_output(model, output)
    request = request or Request()
    if output.resolve() in {p.resolve() for p in (imatrix, request.probed) if p}:
        raise OutputError(f"{output}: is to be read; wanted another file's name")
    statistics = None if imatrix is None else read_statistics(imatrix)
    silent = progress or (lambda done, total: None), tell or (lambda line: None)
    return measure_model(
        model, output, statistics, request, threads or default_threads(), resume, *silent
    )


def probing(
    path: Path,
    texts: Sequence[Path] = (),
    chunks: int = 16,
    n_ctx: int = 512,
    options: ModelOptions | None = None,
) -> Probing:
    """How `measure_sensitivity` finds out what errors cost the model: in a GGUF of it, on texts.

    Args:
        path: in Q8_0, or 16 bits if that fits into memory.
        texts: read one after the other; none: the built-in text.

    Raises:
        TextError, UsageError, EngineError, GGUFError: a text or the file cannot be read.
    """
    read = [Text.read(text) for text in texts]
    if not read:
        with llama.Model.load(path, ModelOptions(vocab_only=True)) as model:
            read = [calibration(model)]
    text = "\n\n".join(each.content for each in read)
    return Probing(path, text, Sample(n_ctx, chunks), options, parse_special=not texts)


def inspect_source(source: str | Path, **reading: Any) -> Inspection:
    """What is in a checkpoint or a GGUF; of a GGUF any architecture.

    Headers only, and a few rows of what is on this machine: of a Hub id no weights are fetched.

    Args:
        reading: as for `open_source`; of no meaning for a GGUF.

    Raises:
        CheckpointError, GGUFError: the source cannot be read.
    """

    def role(name: str) -> str:
        return role_of(name).name

    lattice: dict[str, float] = {}
    if _is_gguf(source):
        with GGUFParts(Path(source)) as file:
            origin = Origin("gguf", file.count, file.missing)
            found = inspect(origin, file.metadata, file.tensors, role)
            lattice = lattice_by_role(found.tensors, file.read)
            family = next((f.title for f in FAMILIES if f.name == found.architecture), None)
    else:
        model = open_source(source, **reading)
        family = model.family
        tensors = {tensor.name: tensor for tensor in model.tensors}
        infos = (TensorInfo(t.name, t.shape, type_named(t.source_type)) for t in model.tensors)
        found = inspect(Origin("checkpoint"), model.metadata, infos, role, model.notes)
        if not hub.is_repository(str(source)):
            lattice = lattice_by_role(found.tensors, lambda name, a, b: tensors[name].read(a, b))
    return replace(found, family=family, lattice=lattice)


def families() -> tuple[Family, ...]:
    """The families of checkpoints that gemcut converts."""
    return FAMILIES


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
