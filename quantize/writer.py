"""The writer: tiles of rows from the source through ggml into the file, in a pool of threads.

No tensor is read twice or held whole: a tile is decoded, encoded and written at its place. Tiles
end where a matrix ends, since every expert has its own importance.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemcut import ggml
from gemcut.convert.engine import Model, Tensor
from gemcut.errors import GemcutError, PlanError
from gemcut.gguf_file import Value
from gemcut.gguf_writer import GGUFWriter
from gemcut.plan import METADATA_KEY, Plan
from gemcut.quantize import stock
from gemcut.quantize.choose import infos
from gemcut.quantize.importance import Importance

TILE = 1 << 20  # weights: 4 MiB as float32, a few of which fit a core's share of cache
RELEASE = 64 * TILE  # weights between two releases of the source's memory: 128 MiB of BF16
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION

Progress = Callable[[int], None]  # told how many weights were just done


@dataclass(frozen=True)
class _Tile:
    tensor: Tensor
    type: ggml.Type
    start: int
    stop: int
    importance: ggml.Floats | None  # [columns]


def metadata(model: Model, plan: Plan) -> dict[str, Value]:
    """The finished file's metadata: the model's own, the file type and, if cut, the plan."""
    values = dict(model.metadata)
    values["general.file_type"] = Value("u32", _file_type(model, plan))
    values["general.quantization_version"] = Value("u32", _QUANTIZATION_VERSION)
    if any(ggml.type_named(entry.type).quantized for entry in plan.tensors.values()):
        values[METADATA_KEY] = Value("str", plan.to_json(indent=None))
    return values


def write_model(
    model: Model,
    plan: Plan,
    path: Path,
    importance: Importance | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write the model with the plan's types; the file appears only when it is complete.

    Raises:
        PlanError: the plan, or the importance, does not fit the model.
        OutputError: the file cannot be written.
    """
    table = infos(model, plan)
    types = {info.name: info.type for info in table}
    _check_importance(model, types, importance)
    with GGUFWriter(path, metadata(model, plan), table) as writer:
        with ThreadPoolExecutor(threads) as pool:
            jobs: deque[Future[int]] = deque()
            finished = _finisher(model, jobs, progress)
            try:
                for tile in _tiles(model, types, importance or {}):
                    jobs.append(pool.submit(_process, tile, writer))
                    if len(jobs) > 2 * threads:  # bounded: a future keeps its tile alive
                        finished()
                while jobs:
                    finished()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _finisher(
    model: Model, jobs: deque[Future[int]], progress: Progress | None
) -> Callable[[], None]:
    """What waits for the oldest job, tells of it, and now and then frees what was read."""
    unreleased = 0

    def finish() -> None:
        nonlocal unreleased
        weights = jobs.popleft().result()
        unreleased += weights
        if unreleased >= RELEASE:
            model.release()
            unreleased = 0
        if progress:
            progress(weights)

    return finish


def encode(
    tensor: Tensor, kind: ggml.Type, start: int, stop: int, weights: ggml.Floats | None = None
) -> ggml.Bytes:
    """Encoded rows [stop - start, row_bytes]; rows that have the type already are passed on."""
    if kind.name == tensor.source_type:
        return np.ascontiguousarray(tensor.raw(start, stop)).view(np.uint8)
    return ggml.quantize(kind, tensor.read(start, stop), weights if kind.quantized else None)


def _process(tile: _Tile, writer: GGUFWriter) -> int:
    try:
        rows = encode(tile.tensor, tile.type, tile.start, tile.stop, tile.importance)
    except GemcutError as error:  # ggml's boundary knows no names
        raise type(error)(f"{tile.tensor.name}: {error}") from error
    writer.write(tile.tensor.name, tile.start, rows)
    return (tile.stop - tile.start) * tile.tensor.columns


def _tiles(model: Model, types: Mapping[str, ggml.Type], importance: Importance) -> Iterator[_Tile]:
    for tensor in model.tensors:
        kind, weights = types[tensor.name], importance.get(tensor.name)
        height = tensor.rows // tensor.matrices
        step = max(1, TILE // tensor.columns)
        for matrix in range(tensor.matrices):
            first, last = matrix * height, (matrix + 1) * height
            own = None if weights is None else weights[matrix]
            for start in range(first, last, step):
                yield _Tile(tensor, kind, start, min(start + step, last), own)


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
    if isinstance(asked, str) and asked in stock.MIXTURES:
        return stock.MIXTURES[asked][0]
    sizes: dict[str, int] = {}
    for info in infos(model, plan):
        sizes[info.type.name] = sizes.get(info.type.name, 0) + info.nbytes
    return stock.file_type(sizes)
