"""Other values in the weights of a loaded model: what a type would make of them, and back again.

What llama.cpp loaded with load mode none lies in memory that can be written, so the cost of a type
can be tried out without writing a file or loading one again. The values are the source's after a
round trip through the type, encoded once more in the type that the loaded file has. Everything goes
tile by tile, also the way back, which reads the loaded file again: nothing is held twice, whatever
the size of a tensor.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from gemcut import ggml, llama
from gemcut.convert.model import Model, Tensor
from gemcut.engine import ContextOptions
from gemcut.errors import EngineError, GemcutError
from gemcut.quantize.importance import Importance
from gemcut.quantize.tiles import encode, spans

BASES = ("q8_0", "bf16", "f16", "f32")  # finer than the errors that are to be seen
_TILE = 1 << 20  # weights

# A tensor's rows start to stop, all of one matrix, as bytes in the loaded file's type.
Rows = Callable[[int, int, int], ggml.Bytes]  # matrix, start, stop


@dataclass(frozen=True)
class Change:
    """What is done to a tensor: a type's error, made so many times larger in the same directions.

    Squared errors grow with the square of the strength.
    """

    type: ggml.Type
    strength: float = 1.0


class Swapper:
    """Changes the weights of a loaded model, and changes them back."""

    def __init__(
        self,
        loaded: llama.Model,
        base: Model,
        source: Model | None = None,
        importance: Importance | None = None,
        threads: int = 1,
    ) -> None:
        """Find the weights; nothing is changed yet.

        Args:
            loaded: the model to change, loaded with load_mode="none" and repack=False.
            base: the file that was loaded, opened as a source.
            source: the model with the exact values; None: the base's own are taken for that.

        Raises:
            EngineError: the weights are out of reach, or too coarse to show another error; or the
                source is another model.
        """
        _check_options(loaded)
        check_alike(base, source or base)
        check_types(base)
        self._places = find_weights(loaded)
        self._base = {t.name: t for t in base.tensors if t.quantizable and t.name in self._places}
        for tensor in self._base.values():
            _check_layout(tensor, self._places[tensor.name])
        self._source = {tensor.name: tensor for tensor in (source or base).tensors}
        self._importance, self.threads = importance or {}, threads

    @property
    def names(self) -> Collection[str]:
        """The tensors that can be changed: those that may be quantized and that the model reads."""
        return self._base.keys()

    def weights(self, name: str) -> int:
        """Number of weights of a tensor."""
        return self._base[name].weights

    @contextmanager
    def swapped(self, changes: Mapping[str, Change]) -> Iterator[None]:
        """These tensors as their changes make them; put back at the end, bit for bit.

        Raises:
            PlanError: rows do not fit the type, or the importance does not fit or is missing.
            EngineError: a tensor that cannot be changed.
        """
        for name in changes:
            if name not in self._base:
                raise EngineError(f"{name}: not a weight that can be changed in the loaded model")
        touched = []
        try:
            for name, change in changes.items():
                touched.append(name)
                self._write(name, partial(self._changed, name, change))
            yield
        finally:
            for name in touched:
                self._write(name, partial(self._own, name))

    def _changed(self, name: str, change: Change, matrix: int, start: int, stop: int) -> ggml.Bytes:
        tensor, base = self._source[name], ggml.type_named(self._base[name].source_type)
        weights = self._importance.get(name)
        row = None if weights is None else weights[matrix]
        coded = encode(tensor, change.type, start, stop, row)
        rows = ggml.dequantize(change.type, coded, tensor.columns)
        if change.strength != 1:
            exact = tensor.read(start, stop)
            rows = exact + np.float32(change.strength) * (rows - exact)
        return ggml.quantize(base, rows)

    def _own(self, name: str, matrix: int, start: int, stop: int) -> ggml.Bytes:
        tensor = self._base[name]
        return encode(tensor, ggml.type_named(tensor.source_type), start, stop)

    def _write(self, name: str, rows: Rows) -> None:
        """Write all rows of a tensor, computed by a few threads, to wherever it lies."""
        tensor = self._base[name]
        row_bytes = ggml.type_named(tensor.source_type).row_bytes(tensor.columns)
        tiles = spans(tensor, _TILE)
        with ThreadPoolExecutor(self.threads) as pool:
            while batch := list(islice(tiles, 2 * self.threads)):  # what waits takes memory
                jobs = [pool.submit(rows, *tile) for tile in batch]
                for (_, start, _), job in zip(batch, jobs, strict=True):
                    for place in self._places[name]:
                        place.write_bytes(_result(name, job).reshape(-1), start * row_bytes)


def find_weights(loaded: llama.Model) -> dict[str, frozenset[llama.Tensor]]:
    """Where a loaded model keeps the weights that it reads, by name.

    There is more than one place where a tied embedding is an output on another device, too.
    """
    found = defaultdict(set)

    def look(_: str, result: llama.Tensor) -> bool:
        for source in result.sources:
            if source.name.endswith(".weight"):
                found[source.name].add(source)
        return False

    # A single token: what is read for a whole batch may be a copy made on another device.
    options = ContextOptions(n_ctx=32, n_ubatch=32, n_outputs=1, threads=1)
    with llama.Context(loaded, options, lambda name, tensor: None, look) as context:
        context.decode([0], outputs="last")
    return {name: frozenset(places) for name, places in found.items()}


def check_alike(base: Model, source: Model) -> None:
    """Raise EngineError unless the two have the same tensors in the same shapes."""
    if base.architecture != source.architecture:
        raise EngineError(
            f"the loaded file is {base.architecture}, the source {source.architecture}: "
            "load a file made from the source"
        )
    shapes = {tensor.name: tensor.shape for tensor in source.tensors}
    for tensor in base.tensors:
        if tensor.shape != shapes.get(tensor.name):
            raise EngineError(
                f"{tensor.name}: shape {tensor.shape} in the loaded file, "
                f"{shapes.get(tensor.name, 'absent')} in the source: load a file made from the "
                "source, without padding or splitting"
            )


def _check_options(loaded: llama.Model) -> None:
    options = loaded.options
    if options.load_mode != "none" or options.repack:
        raise EngineError(
            f"weights loaded with load_mode={options.load_mode!r} and repack={options.repack} "
            "cannot be replaced: load with load_mode='none' and repack=False"
        )


def check_types(base: Model) -> None:
    """Raise EngineError if a weight is kept too coarsely to show another error."""
    for tensor in base.tensors:
        if tensor.quantizable and tensor.source_type not in BASES:
            raise EngineError(
                f"{tensor.name}: {tensor.source_type} in the loaded file, wanted "
                f"{' or '.join(BASES)}: a coarser type hides the errors that are to be measured"
            )


def _check_layout(tensor: Tensor, places: Collection[llama.Tensor]) -> None:
    kind = ggml.type_named(tensor.source_type)
    size = tensor.rows * kind.row_bytes(tensor.columns)
    if any((place.type_id, place.nbytes) != (kind.id, size) for place in places):
        raise EngineError(f"{tensor.name}: llama.cpp keeps it in another layout than its file")


def _result(name: str, job: Future[ggml.Bytes]) -> ggml.Bytes:
    try:
        return job.result()
    except GemcutError as error:  # ggml's boundary knows no names
        raise type(error)(f"{name}: {error}") from error
