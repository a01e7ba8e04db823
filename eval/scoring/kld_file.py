"""llama.cpp's files of a reference's log-probabilities (`llama-perplexity --save-all-logits`).

    "_logits_", int32 n_ctx, n_vocab, n_chunks
    int32 tokens[n_chunks * n_ctx]             as the text has them: before a BOS is put in place
    for every chunk and scored position a row of 16-bit numbers (see `packed`)

Logits more than 16 below a row's largest were raised to that, which the format cannot undo: the
likelihood of a rare token comes out too high. Neither the model nor the tokenizer is named in such
a file (`tools/perplexity/perplexity.cpp`).
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gemcut.errors import OutputError, TextError
from gemcut.eval.files import CHANGED
from gemcut.eval.scoring.packed import LARGEST, pack, row_words, unpack
from gemcut.eval.texts.chunks import Chunk, Part, Tokens, half_scored, scored
from gemcut.gguf_file import state_of
from gemcut.outputs import completed
from gemcut.score import Logits
from gemcut.sizes import format_size

MAGIC = b"_logits_"
CLAMP = 16.0  # logits below the largest
WANTED = (
    "a .kld file holds chunks of one length, of which the second half is scored: use --framing raw "
    "or bos"
)
_HEADER = struct.Struct("<8s3i")
_MOST_VOCABULARY, _MOST_CONTEXT = 1 << 24, 1 << 24


@dataclass(frozen=True)
class KldFile:
    """A file that was read: tokens int32 [n_chunks, n_ctx], and rows that stay on the disk."""

    path: Path
    tokens: Tokens
    n_vocab: int
    _rows: NDArray[np.uint16]  # [n_chunks, scored, row]
    _state: tuple[int, ...]

    @classmethod
    def read(cls, path: Path, wanted: tuple[int, ...] | None = None) -> "KldFile":
        """Open a file.

        Args:
            wanted: its state where it was opened before.

        Raises TextError: unreadable, not such a file, cut short, or changed since.
        """
        try:
            with open(path, "rb") as file:
                header = file.read(_HEADER.size)
            found = state_of(path)
            size = path.stat().st_size
        except OSError as error:
            raise TextError(f"{path}: cannot read it: {error.strerror}") from error
        if found != (wanted or found):
            raise TextError(f"{path}: {CHANGED}")
        n_ctx, n_vocab, n_chunks = _sizes(path, header)
        whole = file_bytes(n_ctx, n_vocab, n_chunks)
        if size != whole:
            raise TextError(
                f"{path}: {size} bytes, wanted {whole} for {n_chunks} chunks of {n_ctx} and a "
                f"vocabulary of {n_vocab}: it is cut short or damaged, save it anew"
            )
        start = _HEADER.size + 4 * n_chunks * n_ctx
        shape = n_chunks, int(scored(n_ctx).sum()), row_words(n_vocab)
        tokens = np.fromfile(path, "<i4", n_chunks * n_ctx, offset=_HEADER.size)
        if tokens.min(initial=0) < 0 or tokens.max(initial=0) >= n_vocab:
            raise TextError(f"{path}: it has tokens beyond its vocabulary of {n_vocab}")
        rows = np.memmap(path, "<u2", "r", start, shape)
        return cls(path, tokens.reshape(n_chunks, n_ctx), n_vocab, rows, found)

    def __reduce__(self) -> tuple[Any, ...]:
        return KldFile.read, (
            self.path,
            self._state,
        )  # for another process: not its rows, which may be 70 GB

    def log_probabilities(
        self,
        chunk: int,
        out: Logits | None = None,
        threads: int = 1,
        which: slice = slice(None),
    ) -> Logits:
        """Of a chunk's scored positions: float32 [scored, n_vocab], into `out` if it fits.

        Args:
            which: of those rows.

        Raises TextError for a row that no logits make: the file is damaged; or it was changed.
        """
        rows = self._rows[chunk, which]
        scales = np.ascontiguousarray(rows[:, :4]).view("<f4")
        steps, least = scales.T
        # The least of several probabilities is below 1; where zeros are left of a row it is not.
        sane = (steps >= 0) & (steps <= LARGEST) & (least < 0)
        if not (np.isfinite(scales).all() and sane.all()):
            raise TextError(f"{self.path}: chunk {chunk + 1} is damaged: save it anew")
        logits = unpack(rows, self.n_vocab, out, threads)
        self._check_same()
        return logits

    def _check_same(self) -> None:
        try:
            found = state_of(self.path)
        except OSError:  # it is gone
            found = ()
        if found != self._state:
            raise TextError(f"{self.path}: {CHANGED}")


class KldReference:
    """A file in place of the reference: its tokens are the text, its numbers the logits.

    They are log-probabilities as llama-perplexity takes them: not normalised again, and those of
    -16 and below are not summed. `gemcut.score.score` does the same if it is given the `cutoff`;
    then the numbers are llama-perplexity's.

    Args:
        bos: the token that each chunk begins with, if the vocabulary has it so; it takes the
            first token's place, as in llama.cpp.
    """

    cutoff = CLAMP

    def __init__(self, file: KldFile, bos: int | None, threads: int = 1) -> None:
        self.path, self.n_vocab = file.path, file.n_vocab
        self._file, self._bos, self._threads = file, bos, threads
        tokens = file.tokens.copy()
        if bos is not None:
            tokens[:, 0] = bos
        self.chunks: list[Chunk] = half_scored(tokens)
        self._numbers = {chunk.digest: number for number, chunk in enumerate(self.chunks)}
        self._buffer: Logits | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return KldReference, (self._file, self._bos, self._threads)

    def logits(self, part: Part) -> Logits:
        """Log-probabilities [n_scored, n_vocab] of one of its chunks, valid until the next call.

        Raises:
            KeyError: another chunk than the file's.
            TextError: the file is damaged there.
        """
        number, rows = self._numbers[part.whole.digest], part.rows
        self._buffer = self._file.log_probabilities(number, self._buffer, self._threads, rows)
        return self._buffer


class KldWriter:
    """Takes the chunks one by one; see `writing`."""

    def __init__(self, file: IO[bytes], tokens: Tokens, n_vocab: int) -> None:
        self._file, self._n_vocab = file, n_vocab
        self.left, n_ctx = tokens.shape
        self._scored = int(scored(n_ctx).sum())
        file.write(_HEADER.pack(MAGIC, n_ctx, n_vocab, self.left))
        file.write(tokens.astype("<i4").tobytes())

    def add(self, logits: Logits, threads: int = 1) -> None:
        """The next chunk's logits [scored, n_vocab]. Raises OutputError for another shape."""
        if logits.shape != (self._scored, self._n_vocab) or not self.left:
            wanted = f"{self.left} chunks more, each {(self._scored, self._n_vocab)}"
            raise OutputError(f"a chunk of logits {logits.shape} for a .kld file, wanted {wanted}")
        self._file.write(pack(logits, CLAMP, threads).data)
        self.left -= 1


@contextmanager
def writing(path: Path, tokens: Tokens, n_vocab: int) -> Iterator[KldWriter]:
    """Write a file that appears under its name when all chunks were added.

    Args:
        tokens: int32 [n_chunks, n_ctx], with or without a BOS in place.

    Raises:
        OutputError: the disk has no room for it or refuses, or chunks are missing at the end.
    """
    with completed(path) as partial:
        _check_room(path, file_bytes(tokens.shape[1], n_vocab, len(tokens)))
        with open(partial, "wb") as file:
            writer = KldWriter(file, tokens, n_vocab)
            yield writer
        if writer.left:
            raise OutputError(f"{path}: {writer.left} chunks are missing, it is not kept")


def saved_tokens(chunks: Sequence[Chunk]) -> Tokens:
    """The tokens of chunks as such a file takes them: int32 [n_chunks, n_ctx].

    Raises OutputError for chunks of several lengths, or of which not just the second half is
    scored.
    """
    lengths = {len(chunk.tokens) for chunk in chunks}
    mask = scored(max(lengths, default=2))
    if len(lengths) != 1 or not all(np.array_equal(chunk.outputs, mask) for chunk in chunks):
        raise OutputError(WANTED)
    return np.stack([chunk.tokens for chunk in chunks])


def file_bytes(n_ctx: int, n_vocab: int, n_chunks: int) -> int:
    """The size of such a file."""
    rows = n_chunks * int(scored(n_ctx).sum())
    return _HEADER.size + 4 * n_chunks * n_ctx + 2 * rows * row_words(n_vocab)


def _check_room(path: Path, size: int) -> None:
    free = disk_usage(path.absolute().parent).free
    if size > free:
        raise OutputError(
            f"{path}: needs {format_size(size)}, {format_size(free)} are free: use fewer chunks"
        )


def _sizes(path: Path, header: bytes) -> tuple[int, int, int]:
    if len(header) < _HEADER.size or header[:8] != MAGIC:
        raise TextError(f"{path}: not a file of llama.cpp's --save-all-logits (.kld)")
    _, n_ctx, n_vocab, n_chunks = _HEADER.unpack(header)
    if not (4 <= n_ctx <= _MOST_CONTEXT and 1 <= n_vocab <= _MOST_VOCABULARY and n_chunks > 0):
        raise TextError(
            f"{path}: {n_chunks} chunks of {n_ctx} tokens, a vocabulary of {n_vocab}: damaged"
        )
    return n_ctx, n_vocab, n_chunks
