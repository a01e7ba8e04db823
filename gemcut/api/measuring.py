"""What matters in a model, and what errors in it cost."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from gemcut import llama
from gemcut.api.cutting import check_output
from gemcut.convert.gguf_source import open_gguf
from gemcut.convert.model import Model, Reading
from gemcut.engine import ModelOptions, default_threads
from gemcut.errors import OutputError
from gemcut.eval.texts import Text, cut
from gemcut.quantize.calibration import NAME as CALIBRATION
from gemcut.quantize.calibration import calibration_text
from gemcut.quantize.collect import Unfinished, collect
from gemcut.quantize.measure import Probing, Request, measure_model
from gemcut.quantize.probe import Sample
from gemcut.quantize.statistics import Statistics, merged, read_statistics, write_statistics
from gemcut.quantize.writer import Tell
from gemcut.runtime.template import Template
from gemcut.sensitivity import Sensitivity


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


def calibration(model: llama.Model) -> Text:
    """The built-in text, its conversations framed as the model wants them."""
    source, eos = model.chat_template, model.eos
    # No BOS within the text, and no date: the text is the same tomorrow.
    end = "" if eos is None else model.piece(eos, special=True).decode(errors="replace")
    template = Template(source, eos=end, today=datetime(2026, 1, 1)) if source else None
    return Text.of(CALIBRATION, calibration_text(template))
