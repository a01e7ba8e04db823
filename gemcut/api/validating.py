"""A finished file held against the model that it was cut from, and against what was predicted."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gemcut import llama
from gemcut.api.base import Base, finest, source_gguf
from gemcut.api.chain import dealt_texts
from gemcut.api.cutting import Target, make_plan, planned_size, quantize_model
from gemcut.api.measuring import calibration
from gemcut.api.sources import Source, model_of
from gemcut.api.words import Where, path_of, paths_of
from gemcut.convert.model import Model
from gemcut.engine import ModelOptions
from gemcut.errors import EngineError
from gemcut.eval.compare import compare
from gemcut.eval.scope import Means, Scope
from gemcut.eval.texts.text import Text
from gemcut.plan import Measured, Plan
from gemcut.quantize.artefacts import Artefacts
from gemcut.quantize.identity import text_digest
from gemcut.quantize.writer import Tell

CHUNKS = 32


def validate(
    source: Source,
    output: Where,
    plan: Plan,
    texts: Where | Sequence[Where] = (),
    chunks: int = CHUNKS,
    n_ctx: int = 512,
    threads: int | None = None,
    folder: Where | None = None,
    progress: Callable[[int, int], None] | None = None,
    tell: Tell | None = None,
) -> Measured:
    """Score a finished file: its KL divergence from the model that it was cut from.

    The reference is the temporary Q8_0 that the model was measured on, if that is there; else the
    source, if it is a GGUF; else one is made for the time being, in BF16 if that fits into memory.

    Args:
        output: the file, or the first of several.
        plan: the file's, with what was predicted of it.
        texts: those that were given for measuring, too: of each, a part is read that nothing else
            was. None: the built-in text.
        chunks: at most so many of each text, of n_ctx tokens.
        folder: of the artefacts that the plan was made from.
        progress: told chunks done, and in all.

    Raises:
        TextError: a text cannot be read or is too short.
        GGUFError, EngineError: a file cannot be read or loaded, or its logits are not finite.
        OutputError: there is no room for a reference.
    """
    model, output = model_of(source), Path(output)
    read = dealt_texts([Text.read(path) for path in paths_of(texts)], "validation")
    if not read:
        with llama.Model.load(output, ModelOptions(vocab_only=True)) as vocabulary:
            read = [calibration(vocabulary, "validation")]
    with _reference(model, output, path_of(folder), threads, tell) as (reference, kind):
        scope, means = Scope(parse_special=not texts), Means(threads)
        if progress:
            means = replace(means, progress=lambda what, done, total: progress(done, total))
        found = compare([output], reference, read, n_ctx, chunks, scope, means)
    row = found.rows[-1]
    if row.summary is None:
        raise EngineError(f"{output}: cannot be scored: {row.failure}")
    kld = row.summary.kld
    assert kld is not None, "there is a reference"
    return Measured(
        kld.value,
        kld.error,
        plan.predicted.get("kld"),
        text_digest("\0".join(text.content for text in read)),
        found.protocol.n_chunks,
        kind,
    )


def record(measured: Measured, paths: Where | Iterable[Where]) -> None:
    """Add what was measured to saved plans; a path where none is, is left out.

    Raises:
        PlanError: a file is no plan.
        OutputError: it cannot be written.
    """
    for path in paths_of(paths):
        if path.is_file():
            plan = Plan.read(path)
            if measured not in plan.measured:
                plan.holding(measured).write(path)


@contextmanager
def _reference(
    model: Model, output: Path, folder: Path | None, threads: int | None, tell: Tell | None
) -> Iterator[tuple[Path, str]]:
    """The file to hold against, and its type; removed afterwards if it was made for this."""
    if folder and folder.is_dir() and (kept := Base(model, Artefacts(folder)).kept):
        yield kept, "q8_0"
    elif source := source_gguf(model):
        yield source, _type(model)
    else:
        with _made(model, output, threads, tell) as made:
            yield made


@contextmanager
def _made(
    model: Model, output: Path, threads: int | None, tell: Tell | None
) -> Iterator[tuple[Path, str]]:
    """A reference beside the output, for as long as it is needed."""
    made, kind = output.with_name(f"{output.name}.reference"), _finest(model, output)
    if tell:
        tell(f"{made.name}: a reference in {kind} is made to hold the file against, and removed")
    quantize_model(model, made, Target(kind), threads=threads, tell=tell)
    try:
        yield made, kind
    finally:
        made.unlink()


def _type(model: Model) -> str:
    """The type that most of a source's weights are in."""
    counts = Counter[str]()
    for tensor in model.tensors:
        counts[tensor.source_type] += tensor.weights
    return counts.most_common(1)[0][0]


def _finest(model: Model, output: Path) -> str:
    """As `finest` has it, if that has room on the disk; else Q8_0."""
    kind = finest(model, output.stat().st_size)
    size = planned_size(model, make_plan(model, Target(kind)))
    return kind if size <= shutil.disk_usage(output.parent).free else "q8_0"
