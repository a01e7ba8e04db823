"""What matters in a model, and what errors in it cost."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from os import PathLike
from pathlib import Path

import numpy as np

from gemcut import llama
from gemcut.api.sources import Source, model_of
from gemcut.api.words import Where, path_of, paths_of
from gemcut.convert.gguf_source import open_gguf
from gemcut.convert.model import Model, Reading
from gemcut.cores import default_threads
from gemcut.engine import ModelOptions
from gemcut.errors import UsageError
from gemcut.eval.texts.chunks import cut
from gemcut.eval.texts.text import Text
from gemcut.lock import alone
from gemcut.outputs import check_outputs
from gemcut.quantize.calibration import NAME as CALIBRATION
from gemcut.quantize.calibration import Use, calibration_text
from gemcut.quantize.collect import Unfinished, collect
from gemcut.quantize.identity import listed
from gemcut.quantize.importance import Importance, unweighted
from gemcut.quantize.measure import Request, measure_model
from gemcut.quantize.probe import Probing, Sample
from gemcut.quantize.statistics import Statistics, merged, read_statistics, write_statistics
from gemcut.quantize.writer import Tell
from gemcut.runtime.language.template import Template
from gemcut.sensitivity import Sensitivity

Texts = Where | Sequence[Where | Text]  # read one after the other; none: the built-in text


def collect_importance(
    path: Where,
    texts: Texts,
    output: Where,
    n_ctx: int = 512,
    chunks: int | None = None,
    threads: int | None = None,
    options: ModelOptions | None = None,
    parse_special: bool = False,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
    tell: Tell | None = None,
    minutes: float | None = None,
) -> Statistics:
    """Run text through a GGUF, and write what its matrices were multiplied with as an imatrix.

    Args:
        texts: read one after the other; none: the built-in text.
        chunks: read at most so many, of n_ctx tokens each.
        parse_special: read "<bos>" and the like as tokens.
        restart: throw away what an interrupted call left, rather than continue it.
        progress: told chunks done, and in all.
        tell: told in a line when work is continued, or is interrupted and can be continued.
        minutes: read fewer chunks if it would take longer.

    Raises:
        TextError: a text cannot be read, or all together are shorter than two chunks.
        UsageError, OutputError, EngineError: see `gemcut.quantize.collect`.
        GGUFError: not a model.
    """
    path, output, given = Path(path), Path(output), _given(texts)
    source = open_gguf(path, Reading(requantize=True))
    check_outputs([output], [*source.files, *(text for text in given if isinstance(text, Path))])
    with alone(output), llama.Model.load(path, options) as model:
        read = _read(given) or [calibration(model)]
        special = parse_special or not given
        tokens = np.concatenate([model.tokenize(t.content, True, special) for t in read])
        bos = model.bos if model.add_bos else None
        cut_ = cut(tokens, n_ctx, chunks, bos, ", ".join(text.name for text in read))
        unfinished = Unfinished(output, source.identity, cut_)
        seconds = None if minutes is None else 60 * minutes
        found = collect(model, cut_, threads, progress, unfinished, restart, tell, seconds)
        statistics = replace(found, datasets=tuple(text.name for text in read))
        source.check()
        write_statistics(output, statistics)
        unfinished.remove()
    return statistics


def merge_importance(paths: Where | Sequence[Where], output: Where) -> Statistics:
    """Add imatrix files up into one, as if all their texts had been read.

    Raises:
        UsageError: there are none.
        GGUFError: not an imatrix, or damaged.
        PlanError: they are of different models.
        OutputError: the file cannot be written, or is one of them.
    """
    check_outputs([Path(output)], paths_of(paths))
    if not paths_of(paths):
        raise UsageError("no imatrix files to add up")
    statistics = merged([read_statistics(path) for path in paths_of(paths)])
    write_statistics(Path(output), statistics)
    return statistics


def measure_sensitivity(
    source: Source,
    output: Where,
    imatrix: Where | None = None,
    request: Request | None = None,
    threads: int | None = None,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
    tell: Tell | None = None,
) -> Sensitivity:
    """Measure what every tensor loses in every type, and write it as a sensitivity.json.

    Args:
        imatrix: importance of columns and experts; without it, all count alike and the types
            that need it are left out.
        request: what is measured, how thoroughly, and whether what errors cost the model is
            probed (see `probing`) or stays a prior.
        restart: throw away what an interrupted call left, rather than go on with it.
        progress: told how many tensors are done, and how many there are.
        tell: told how long it will take, and what becomes of an interrupted run.

    Raises:
        UsageError, GGUFError, PlanError, OutputError, EngineError, CheckpointError, TextError: see
            `quantize.measure.measure_model`.
    """
    model, output, request = model_of(source), Path(output), request or Request()
    check_outputs([output], [path_of(imatrix), request.probed, *model.files])
    statistics = None if imatrix is None else read_statistics(Path(imatrix))
    silent = progress or (lambda done, total: None), tell or (lambda line: None)
    with alone(output):
        return measure_model(
            model, output, statistics, request, threads or default_threads(), restart, *silent
        )


def probing(
    path: Where,
    texts: Texts = (),
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
    path, read = Path(path), _read(_given(texts))
    if not read:
        with llama.Model.load(path, ModelOptions(vocab_only=True)) as model:
            read = [calibration(model, "probe")]
    text = "\n\n".join(each.content for each in read)
    return Probing(path, text, Sample(n_ctx, chunks), options, parse_special=not _given(texts))


def _given(texts: Texts) -> list[Path | Text]:
    several = [texts] if isinstance(texts, str | PathLike) else texts
    return [text if isinstance(text, Text) else Path(text) for text in several]


def _read(texts: Sequence[Path | Text]) -> list[Text]:
    return [text if isinstance(text, Text) else Text.read(text) for text in texts]


def missing_importance(model: Model, importance: Importance | None) -> str | None:
    """A line on the tensors that would be cut without importance though others have it, or None."""
    names = [] if importance is None else unweighted(importance, model.tensors)
    if not names:
        return None
    every = sum(not tensor.kept and tensor.quantizable for tensor in model.tensors)
    return (
        f"the importance matrix lacks {len(names)} of {every} tensors, which are cut unweighted: "
        f"{listed(names)}"
    )


def calibration(model: llama.Model, use: Use = "importance") -> Text:
    """The built-in text for a use, its conversations framed as the model wants them."""
    source, eos = model.chat_template, model.eos
    # No BOS within the text, and no date: the text is the same tomorrow.
    end = "" if eos is None else model.piece(eos, special=True).decode(errors="replace")
    template = Template(source, eos=end, today=datetime(2026, 1, 1)) if source else None
    return Text.of(CALIBRATION, calibration_text(template, use=use))
