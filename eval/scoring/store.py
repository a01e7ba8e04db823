"""A reference that need not be in memory: what its logits follow from, in a temporary file.

For models that do not fit into memory together: the reference reads every chunk once and is closed;
then others are compared with it, one after the other. A scored token takes its last hidden state
(4 bytes a number: 11 KB at a width of 2,816), of which ggml makes logits with the file's own head
when they are wanted. Where these are not the logits that llama.cpp computed, they are kept
themselves, in 16 bits a number (512 KB a token at a vocabulary of 262,144).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np

from gemcut.closing import Closing
from gemcut.errors import EngineError, GGUFError, OutputError
from gemcut.eval.scoring.head import HeadWatch, divergence
from gemcut.eval.scoring.packed import pack, row_words, unpack
from gemcut.eval.texts.chunks import Chunk
from gemcut.llama.head import Head
from gemcut.llama.tensor import Tensor
from gemcut.score import Logits
from gemcut.sizes import format_size
from gemcut.user_cache import cache_folder

Tell = Callable[[str], None]

# Half of what float32 exponentials leave uncertain in a KL divergence (`gemcut.score`), and about
# what 16 bits a logit cost: sums in another order stay two orders below, another head far above.
AGREES = 1e-7  # nats
_COMPARED = 64  # rows of the first chunk
# Nats below the top in 16-bit logits: far beyond what any sum sees, and yet a token that a model
# forbids with the least float there is does not take all the steps.
_CLAMP = 128.0


def hidden_bytes(chunks: Sequence[Chunk], n_embd: int) -> int:
    """The size of a store of hidden states."""
    return 4 * n_embd * sum(chunk.n_scored for chunk in chunks)


def packed_bytes(chunks: Sequence[Chunk], n_vocab: int) -> int:
    """The size of a store of 16-bit logits."""
    return 2 * row_words(n_vocab) * sum(chunk.n_scored for chunk in chunks)


class StoredReference(Closing):
    """Takes the chunks that the reference reads, and gives their logits when it is closed.

        with StoredReference(path, chunks, threads) as store:
            with Model.load(path, options) as model:
                with Context(model, how, store.on_tensor, store.wants) as context:
                    for chunk in chunks:  # one chunk in a decode, from an empty cache
                        logits = context.decode(chunk.tokens, outputs=chunk.outputs)
                        store.add(chunk, logits)
            ...
            store.logits(chunk)

    The file has no name, so nothing is left of it, however the process ends (on Windows it has one
    until it is closed). In memory: the logits of one chunk.

    Args:
        path: the reference's file.
        chunks: all that will be added; for the size of the file.
        folder: where the file is, gemcut's cache folder by default: a /tmp may be memory.
        tell: is told what is kept, why, and its size, before anything is written.

    After the first chunk:
        planned_bytes: the size of the whole file.
        error: mean KL divergence of the reference from its own logits out of the store, in nats,
            over up to 64 rows of the first chunk.
    """

    cutoff = None  # of `gemcut.score.score`: these are logits

    def __init__(
        self,
        path: Path,
        chunks: Sequence[Chunk],
        threads: int = 1,
        folder: Path | None = None,
        tell: Tell | None = None,
    ) -> None:
        self._path, self._chunks, self._threads = path, chunks, threads
        self._folder, self._tell = folder or cache_folder(), tell
        self._watch, self._open = HeadWatch(), ExitStack()
        self._head: Head | None = None
        self._file: BinaryIO | None = None
        self._places: dict[str, tuple[int, int]] = {}  # of a chunk: first byte, rows
        self._end, self._row_bytes, self._n_vocab = 0, 0, 0
        self._buffer: Logits | None = None
        self.planned_bytes, self.error = 0, float("nan")

    def on_tensor(self, name: str, tensor: Tensor) -> None:
        """For the reference's context."""
        self._watch.on_tensor(name, tensor)

    def wants(self, name: str, tensor: Tensor) -> bool:
        """For the reference's context."""
        return self._watch.wants(name, tensor)

    def add(self, chunk: Chunk, logits: Logits) -> None:
        """Keep what the context just decoded: logits [n_scored, n_vocab], all of them finite.

        Raises:
            OutputError: the disk has no room for all chunks, or refuses.
            EngineError: a chunk was decoded in another way than the first one.
        """
        hidden = self._watch.take()
        file = self._file or self._begin(hidden, logits)
        kept = pack(logits, _CLAMP, self._threads) if self._head is None else hidden
        if kept.nbytes != chunk.n_scored * self._row_bytes:
            raise EngineError(f"{self._path.name}: {len(kept)} rows for {chunk.n_scored} tokens")
        try:
            file.seek(self._end)
            rest = kept.data.cast("B")
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise self._refused(error.strerror) from error
        self._places[chunk.digest] = self._end, len(kept)
        self._end += kept.nbytes

    def logits(self, chunk: Chunk) -> Logits:
        """The reference's logits, or log-probabilities: float32 [n_scored, n_vocab].

        Valid until the next call. Raises KeyError for a chunk that was not added, EngineError if
        ggml fails.
        """
        start, rows = self._places[chunk.digest]
        assert self._file is not None
        self._file.seek(start)
        data = np.fromfile(self._file, np.uint8, rows * self._row_bytes).reshape(rows, -1)
        if self._head is not None:
            return self._head.logits(data.view(np.float32))
        self._buffer = unpack(data.view("<u2"), self._n_vocab, self._buffer, self._threads)
        return self._buffer

    def close(self) -> None:
        """Remove the file, and free the head."""
        self._buffer = None
        self._open.close()

    def _begin(self, hidden: Logits, logits: Logits) -> BinaryIO:
        """Decide what is kept, by the first chunk, and make room for it."""
        self._n_vocab = logits.shape[1]
        if trouble := self._choose_head(hidden, logits):
            some = _some(logits)
            self.error = divergence(some, unpack(pack(some, _CLAMP), self._n_vocab))
            self._row_bytes = 2 * row_words(self._n_vocab)
            self.planned_bytes, what = packed_bytes(self._chunks, self._n_vocab), "16-bit logits"
        else:
            self._row_bytes = hidden.itemsize * hidden.shape[1]
            self.planned_bytes, what = hidden_bytes(self._chunks, hidden.shape[1]), "hidden states"
        if self._tell:
            why = f", as {trouble}" if trouble else ""
            self._tell(
                f"the reference is kept as {what}{why}: {format_size(self.planned_bytes)} in "
                f"{self._folder} (off by {self.error:.1g} nats)"
            )
        self._file = self._make()
        return self._file

    def _choose_head(self, hidden: Logits, logits: Logits) -> str:
        """Open the head if it makes these logits of these states; if not, why."""
        if self._watch.trouble or len(hidden) != len(logits):
            return self._watch.trouble or "its hidden states are not those of the scored tokens"
        with ExitStack() as opened:
            try:
                head = opened.enter_context(Head(self._path, self._watch.steps, self._threads))
                self.error = divergence(_some(logits), head.logits(_some(hidden)))
            except (EngineError, GGUFError) as error:
                return str(error)
            if not self.error <= AGREES:
                return f"its head computed on the CPU is off by {self.error:.1g} nats"
            self._head = head
            self._open.push(opened.pop_all())
        return ""

    def _make(self) -> BinaryIO:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            free = disk_usage(self._folder).free
            if self.planned_bytes > free:
                raise self._refused(f"{format_size(free)} are free there")
            file = TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  # closed by `close`
        except OSError as error:
            raise self._refused(error.strerror) from error
        self._open.callback(file.close)
        return file

    def _refused(self, why: str | None) -> OutputError:
        return OutputError(
            f"{self._folder}: {format_size(self.planned_bytes)} are needed for what the reference "
            f"computed: {why}; use fewer chunks, or another disk (XDG_CACHE_HOME)"
        )


def _some(rows: Logits) -> Logits:
    """Rows from all over an array, few enough to be computed twice."""
    return rows[:: -(-len(rows) // _COMPARED)]
