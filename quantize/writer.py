"""The writer: a model and a plan become files, in tiles of rows, in a pool of threads.

Work that was interrupted, in whatever way, is continued: what a journal says is done is read back
and compared, and whatever decides the bytes has to be the same.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePath

import numpy as np

from gemcut import __version__, ggml
from gemcut.convert.model import Model, Tensor
from gemcut.engine import PINNED
from gemcut.errors import EngineError, GemcutError, PlanError
from gemcut.gguf_experts import marked
from gemcut.gguf_file import Value
from gemcut.gguf_layout import Layout, layouts
from gemcut.plan import METADATA_KEY, Plan
from gemcut.quantize import estimate, stock
from gemcut.quantize.choose import infos
from gemcut.quantize.identity import digest
from gemcut.quantize.importance import Importance
from gemcut.quantize.reshape import shaped, shaped_importance
from gemcut.quantize.single_experts import has_experts, singled, singled_importance
from gemcut.quantize.statistics import Statistics
from gemcut.quantize.tiles import Progress, Tile, Work, resume, spans
from gemcut.quantize.verify import Sample
from gemcut.resumable_writer import ResumableWriter

TILE = 1 << 20  # weights: 4 MiB as float32, a few of which fit a core's share of cache
RELEASE = 64 * TILE  # weights between two records and releases of the source: 128 MiB of BF16
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION

_CHANGED = ": what lies there is no longer what was written"
_RESTART = "--restart begins anew"

Tell = Callable[[str], None]  # told a line for the user


def metadata(model: Model, plan: Plan) -> dict[str, Value]:
    """The finished file's metadata: the model's own, the file type and, if cut, the plan.

    One with types per expert is marked as such.
    """
    values = dict(shaped(model, plan).metadata)
    values["general.file_type"] = Value("u32", _file_type(model, plan))
    values["general.quantization_version"] = Value("u32", _QUANTIZATION_VERSION)
    if any(ggml.type_named(entry.type).quantized for entry in plan.tensors.values()):
        values[METADATA_KEY] = Value("str", plan.to_json(indent=None))
    return marked(values) if has_experts(plan) else values


def carrying(model: Model, statistics: Statistics) -> Model:
    """The model with metadata that says which importance it is cut with.

    The keys are llama-quantize's, and a digest; no paths: of a text's name only the last part.
    """
    keys = {
        "entries_count": Value("u32", len(statistics.entries)),
        "digest": Value("str", digest(statistics)),
    }
    if statistics.datasets:
        keys["dataset"] = Value("str", PurePath(statistics.datasets[0].replace("\\", "/")).name)
    if statistics.chunk_count:
        keys["chunks_count"] = Value("u32", statistics.chunk_count)
    named = {f"quantize.imatrix.{key}": value for key, value in keys.items()}
    return replace(model, metadata={**model.metadata, **named})


def files(
    model: Model, plan: Plan, path: Path, split_size: int | None = None
) -> dict[Path, Layout]:
    """The files that will be written, by name; see `gguf_layout.layouts`. Raises PlanError."""
    return layouts(path, metadata(model, plan), infos(model, plan), split_size)


def write_model(
    model: Model,
    plan: Plan,
    path: Path,
    importance: Importance | None = None,
    threads: int = 1,
    progress: Progress | None = None,
    split_size: int | None = None,
    restart: bool = False,
    tell: Tell | None = None,
) -> None:
    """Write the model with the plan's types; the file appears only when it is complete.

    What was finished when the work is interrupted, in whatever way, stays beside `path`, and
    writing the same again goes on behind it.

    Args:
        split_size: the most bytes of tensors that a file holds; None: one file.
        restart: do not go on with what was interrupted, but begin anew.
        tell: told in a line how long a large model takes, when work is continued, and when it is
            interrupted and can be continued.

    Raises:
        PlanError: the plan, or the importance, does not fit the model.
        OutputError: the file cannot be written, unfinished work of another model or plan lies
            there, or a sample of the finished file is not what was encoded; nothing is kept then.
        CheckpointError, GGUFError: the source cannot be fetched or read, or was changed meanwhile.
        EngineError: ggml refuses what the source holds; nothing is kept then.
    """
    outputs = files(model, plan, path, split_size)
    if importance:
        importance = singled_importance(shaped_importance(importance, model, plan), plan)
    source, model = model, singled(shaped(model, plan), plan)
    types = {info.name: info.type for layout in outputs.values() for info in layout.tensors}
    _check_importance(model, types, importance)
    tiles = partial(_tiles, model, types, importance or {})
    count = sum(1 for _ in tiles())
    advance, say = _scaled(progress or _ignore, source.weights, model.weights), tell or _ignore

    def share(done: int) -> str:
        return f"{sum(tile.weights for tile in islice(tiles(), done)) / model.weights:.0%}"

    with ResumableWriter(path, outputs, _key(model, outputs, importance), count, restart) as output:
        before, sample = len(output.records), Sample()
        try:
            if not before and model.weights >= estimate.WORTH:
                seconds = estimate.encoding_seconds(model, types, importance or (), threads)
                say(f"{path.name}: encoding takes about {estimate.spoken(seconds)}")
            model.fetch()  # now that the room for the result is taken
            done = resume(output, tiles(), threads, advance)
            if before:
                changed = _CHANGED if len(output.records) < before else ""
                say(f"{path.name}: continuing at {share(done)}{changed}")
            work = Work(output, threads, RELEASE, model.release, advance, sample.take)
            work.run(islice(tiles(), done, None))
        except EngineError:  # the source holds what cannot be encoded: there is no way past it
            output.discard()
            raise
        except BaseException:
            if output.records:
                kept = share(output.records[-1].tiles)
                say(f"{path.name}: {kept} is kept: the same command continues, {_RESTART}")
            raise
        _verify(model, sample, output)


def _ignore(_: object) -> None:
    """For who does not want to know."""


def _verify(model: Model, sample: Sample, output: ResumableWriter) -> None:
    """Before the files get their names; of what is of a source that changed, or holds something
    else, nothing is kept."""
    try:
        model.check()
        sample.check(output.partials)
    except GemcutError:
        output.discard()
        raise


def _scaled(progress: Progress, total: int, written: int) -> Progress:
    """Progress in the source's weights, of which what is padded has fewer than are written."""
    done = 0

    def advance(weights: int) -> None:
        nonlocal done
        before, done = done, done + weights
        progress(done * total // written - before * total // written)

    return advance


def _key(model: Model, outputs: Mapping[Path, Layout], importance: Importance | None) -> str:
    """A digest of everything that decides the bytes, and their order in time."""
    order = [tensor.name for tensor in _in_order(model)]
    hashed = hashlib.sha256(repr((__version__, PINNED, TILE, model.identity, order)).encode())
    for layout in outputs.values():
        hashed.update(layout.header)
    for tensor in model.tensors:
        weights = (importance or {}).get(tensor.name)
        if weights is not None:
            hashed.update(tensor.name.encode() + np.ascontiguousarray(weights).tobytes())
    return hashed.hexdigest()


def _in_order(model: Model) -> list[Tensor]:
    """The tensors as their data lies in the source, which is then read once from end to end."""
    return sorted(model.tensors, key=lambda tensor: tensor.rank)


def _tiles(model: Model, types: Mapping[str, ggml.Type], importance: Importance) -> Iterator[Tile]:
    for tensor in _in_order(model):
        kind, weights = types[tensor.name], importance.get(tensor.name)
        for matrix, start, stop in spans(tensor, TILE):
            yield Tile(tensor, kind, start, stop, None if weights is None else weights[matrix])


def _check_importance(
    model: Model, types: Mapping[str, ggml.Type], importance: Importance | None
) -> None:
    """Before anything is written: it would be a pity to find out after hours."""
    if importance is not None and not any(t.name in importance for t in model.tensors):
        raise PlanError("the importance matrix has none of this model's tensors: another model's?")
    for tensor in model.tensors:
        weights = (importance or {}).get(tensor.name)
        if weights is None and ggml.needs_importance(types[tensor.name]):
            raise PlanError(
                f"{tensor.name}: {types[tensor.name]} needs an importance matrix (--imatrix) that "
                "has this tensor"
            )
        if weights is not None and weights.shape != (tensor.matrices, tensor.columns):
            raise PlanError(
                f"importance of {tensor.name} has shape {list(weights.shape)}, wanted "
                f"{[tensor.matrices, tensor.columns]}: it was made for another model"
            )


def _file_type(model: Model, plan: Plan) -> int:
    asked = plan.request.get("type")
    held = {tensor.kept for tensor in model.tensors if tensor.kept}
    if asked in ("f32", "f16", "bf16") and any(ggml.type_named(each).quantized for each in held):
        # As llama.cpp's converter names what keeps its experts; else most of it is what was kept.
        asked = "mxfp4_moe" if "mxfp4" in held else None
    if isinstance(asked, str) and asked in stock.MIXTURES:
        return stock.MIXTURES[asked][0]
    sizes: dict[str, int] = {}
    for info in infos(model, plan):
        sizes[info.type.name] = sizes.get(info.type.name, 0) + info.nbytes
    return stock.file_type(sizes)
