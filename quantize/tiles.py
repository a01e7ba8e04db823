"""Tiles through a pool of threads into a result: finished in their order, recorded as they are.

A tile is a few rows of one matrix. It is decoded, encoded and written at its place, so no tensor
is read twice or held whole, and how far the work has come is one number.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from gemcut import ggml
from gemcut.convert.model import Tensor
from gemcut.errors import EngineError, GemcutError
from gemcut.journal import digest
from gemcut.lattice import encode_q4_0
from gemcut.resumable_writer import ResumableWriter

_ADVICE = ": is the source damaged? (--allow-nonfinite passes them on)"
_CHECKED = frozenset({"f32", "f16", "bf16"})  # blocks of low-bit types are passed on as they are

Progress = Callable[[int], None]  # told how many weights were just done


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows `start` to `stop` of a tensor, all of one matrix, and the type they get."""

    tensor: Tensor
    type: ggml.Type
    start: int
    stop: int
    importance: ggml.Floats | None  # [columns]

    @property
    def weights(self) -> int:
        """Number of weights."""
        return (self.stop - self.start) * self.tensor.columns


def spans(tensor: Tensor, size: int) -> Iterator[tuple[int, int, int]]:
    """(matrix, start, stop) of the tiles of about `size` weights that a tensor is divided into.

    Tiles end where a matrix ends, since every expert has its own importance.
    """
    height = tensor.rows // tensor.matrices
    step = max(1, size // tensor.columns)
    for matrix in range(tensor.matrices):
        first, last = matrix * height, (matrix + 1) * height
        for start in range(first, last, step):
            yield matrix, start, min(start + step, last)


def encode(
    tensor: Tensor, kind: ggml.Type, start: int, stop: int, weights: ggml.Floats | None = None
) -> ggml.Bytes:
    """Encoded rows [stop - start, row_bytes]; rows that have the type already are passed on."""
    if (rows := tensor.raw(start, stop, kind.name)) is not None:
        if kind.name in _CHECKED and not tensor.nonfinite and not ggml.is_finite(kind, rows):
            raise EngineError("the weights hold NaN or infinite values" + _ADVICE)
        return rows
    return encode_rows(tensor, kind, tensor.read(start, stop), weights)


def encode_rows(
    tensor: Tensor, kind: ggml.Type, rows: ggml.Floats, weights: ggml.Floats | None
) -> ggml.Bytes:
    """Rows [n, columns] of a tensor, or wider ones, encoded [n, row_bytes].

    What was trained for Q4_0 keeps its own lattice there, and importance has nothing to choose;
    everything else is encoded as llama.cpp does.
    """
    if kind.name == "q4_0" and tensor.is_trained_for_q4_0:
        return encode_q4_0(rows)
    return ggml.quantize(kind, rows, weights if kind.quantized else None, tensor.nonfinite)


def resume(output: ResumableWriter, tiles: Iterator[Tile], threads: int, progress: Progress) -> int:
    """How many tiles an earlier run has finished: those that are what its journal says.

    Raises:
        OutputError: the disk does not give them back.
    """

    def checksum(tile: Tile) -> int:
        return output.checksum(tile.tensor.name, tile.start, tile.stop)

    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for kept, record in enumerate(output.records):
            batch = list(islice(tiles, record.tiles - done))
            if digest(pool.map(checksum, batch)) != record.digest:
                output.forget(kept)  # with all that comes after it
                break
            for tile in batch:
                output.accept(tile.tensor.name, tile.stop - tile.start)
            done += len(batch)
            progress(sum(tile.weights for tile in batch))
    return done


class Work:
    """Tiles in the hands of the threads, and what of them is finished but not yet recorded."""

    def __init__(
        self,
        output: ResumableWriter,
        threads: int,
        every: int,
        release: Callable[[int], None],
        progress: Progress,
        written: Callable[[Tile], None] = lambda _: None,
    ) -> None:
        """Prepare; nothing is done yet.

        Args:
            written: called by the threads with every tile that they have written.
            every: weights between two records.
            release: told, after a record, the rank of the last recorded tile's tensor.
            progress: told every tile's weights.
        """
        self._output, self._threads, self._every = output, threads, every
        self._release, self._progress, self._written = release, progress, written
        self._jobs: deque[tuple[Tile, Future[int]]] = deque()
        self._checksums: list[int] = []  # finished since the last record
        self._weights = 0  # of these
        self._recording: Future[None] | None = None

    def run(self, tiles: Iterable[Tile]) -> None:
        """Write the tiles, which come by rank; what is finished when it fails is recorded.

        Raises:
            GemcutError: a tile cannot be read, encoded or written.
        """
        # Recording waits for the disk, which the threads that encode need not do.
        with (
            ThreadPoolExecutor(self._threads) as pool,
            ThreadPoolExecutor(1) as recorder,
        ):
            rank = 0
            try:
                for tile in tiles:
                    rank = tile.tensor.rank
                    self._jobs.append((tile, pool.submit(self._process, tile)))
                    if len(self._jobs) > 2 * self._threads:  # what is queued takes memory
                        self._finish(recorder)
                while self._jobs:
                    self._finish(recorder)
                self._record(recorder, rank + 1)
                self._recorded()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                with suppress(GemcutError):  # it is another error that is to be told
                    self._rescue()
                raise

    def _process(self, tile: Tile) -> int:
        """Encode and write a tile; its checksum."""
        try:
            rows = encode(tile.tensor, tile.type, tile.start, tile.stop, tile.importance)
        except GemcutError as error:  # ggml's boundary knows no names
            raise type(error)(f"{tile.tensor.name}: {error}") from error
        checksum = self._output.write(tile.tensor.name, tile.start, rows)
        self._written(tile)
        return checksum

    def _finish(self, recorder: ThreadPoolExecutor) -> None:
        """Wait for the oldest job, tell of it, and now and then record."""
        tile = self._take()
        if self._weights >= self._every:
            self._record(recorder, tile.tensor.rank)
        self._progress(tile.weights)

    def _take(self) -> Tile:
        """Wait for the oldest job, and note that it is finished."""
        tile, job = self._jobs[0]
        checksum = job.result()
        self._jobs.popleft()
        self._checksums.append(checksum)
        self._weights += tile.weights
        return tile

    def _record(self, recorder: ThreadPoolExecutor, rank: int) -> None:
        """Record what is finished, after what is just being recorded."""
        self._recorded()
        checksums, self._checksums, self._weights = self._checksums, [], 0
        self._recording = recorder.submit(self._put, checksums, rank)

    def _put(self, checksums: list[int], rank: int) -> None:
        self._output.record(checksums)
        self._release(rank)

    def _recorded(self) -> None:
        if self._recording is not None:
            self._recording.result()

    def _rescue(self) -> None:
        """Record what was finished, in order, when the work came to its end."""
        while self._jobs and _succeeded(self._jobs[0][1]):
            self._take()
        self._recorded()
        self._output.record(self._checksums)


def _succeeded(job: Future[int]) -> bool:
    return job.done() and not job.cancelled() and job.exception() is None
