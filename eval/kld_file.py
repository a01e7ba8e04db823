"""llama.cpp's files of a reference's log-probabilities (`llama-perplexity --save-all-logits`).

    "_logits_", int32 n_ctx, n_vocab, n_chunks
    int32 tokens[n_chunks * n_ctx]             as the text has them: before a BOS is put in place
    for every chunk and scored position, uint16 each:
        float32 scale, float32 least           (two uint16 each)
        uint16 q[n_vocab], one more without meaning where n_vocab is odd

A log-probability is scale * q + least. Logits more than 16 below a row's largest were raised to
that, which the format cannot undo: the likelihood of a rare token comes out too high. Neither the
model nor the tokenizer is named in such a file (`tools/perplexity/perplexity.cpp`).
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemcut.errors import TextError
from gemcut.eval.texts import Tokens, scored
from gemcut.score import Logits

MAGIC = b"_logits_"
CLAMP = 16.0  # logits below the largest
_HEADER = struct.Struct("<8s3i")
_MOST_VOCABULARY, _MOST_CONTEXT = 1 << 24, 1 << 24
_STEPS = 65535


@dataclass(frozen=True)
class KldFile:
    """A file that was read: tokens int32 [n_chunks, n_ctx], and rows that stay on the disk."""

    path: Path
    tokens: Tokens
    n_vocab: int
    _rows: NDArray[np.uint16]  # [n_chunks, scored, row]

    @classmethod
    def read(cls, path: Path) -> "KldFile":
        """Open a file. Raises TextError: unreadable, not such a file, or cut short."""
        try:
            with open(path, "rb") as file:
                header = file.read(_HEADER.size)
            size = path.stat().st_size
        except OSError as error:
            raise TextError(f"{path}: cannot read it: {error.strerror}") from error
        n_ctx, n_vocab, n_chunks = _sizes(path, header)
        wanted = file_bytes(n_ctx, n_vocab, n_chunks)
        if size != wanted:
            raise TextError(
                f"{path}: {size} bytes, wanted {wanted} for {n_chunks} chunks of {n_ctx} and a "
                f"vocabulary of {n_vocab}: it is cut short or damaged, save it anew"
            )
        start = _HEADER.size + 4 * n_chunks * n_ctx
        shape = n_chunks, int(scored(n_ctx).sum()), _row(n_vocab)
        tokens = np.fromfile(path, "<i4", n_chunks * n_ctx, offset=_HEADER.size)
        if tokens.min(initial=0) < 0 or tokens.max(initial=0) >= n_vocab:
            raise TextError(f"{path}: it has tokens beyond its vocabulary of {n_vocab}")
        rows = np.memmap(path, "<u2", "r", start, shape)
        return cls(path, tokens.reshape(n_chunks, n_ctx), n_vocab, rows)

    def log_probabilities(self, chunk: int) -> Logits:
        """Of a chunk's scored positions: float32 [scored, n_vocab]."""
        rows = np.ascontiguousarray(self._rows[chunk])
        head = rows[:, :4].copy().view("<f4")
        found = rows[:, 4 : 4 + self.n_vocab].astype(np.float32)
        found *= head[:, :1]
        found += head[:, 1:]
        return found


class KldWriter:
    """Takes the chunks one by one; see `writing`."""

    def __init__(self, path: Path, tokens: Tokens, n_vocab: int) -> None:
        self._tokens, self._n_vocab = tokens, n_vocab
        self._file = open(path, "wb")  # noqa: SIM115  # closed by `writing`

    def begin(self) -> None:
        """Write the header."""
        n_chunks, n_ctx = self._tokens.shape
        self._file.write(_HEADER.pack(MAGIC, n_ctx, self._n_vocab, n_chunks))
        self._file.write(self._tokens.astype("<i4").tobytes())

    def add(self, logits: Logits) -> None:
        """The next chunk's logits [scored, n_vocab]."""
        for row in logits:
            self._file.write(encoded(row).tobytes())

    def close(self) -> None:
        """End the file."""
        self._file.close()


@contextmanager
def writing(path: Path, tokens: Tokens, n_vocab: int) -> Iterator[KldWriter]:
    """Write a file that appears under its name when all chunks were added.

    Args:
        tokens: int32 [n_chunks, n_ctx], as the text has them.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    writer = KldWriter(unfinished, tokens, n_vocab)
    try:
        writer.begin()
        yield writer
        writer.close()
        unfinished.replace(path)
    finally:
        writer.close()
        unfinished.unlink(missing_ok=True)


def file_bytes(n_ctx: int, n_vocab: int, n_chunks: int) -> int:
    """The size of such a file."""
    rows = n_chunks * int(scored(n_ctx).sum())
    return _HEADER.size + 4 * n_chunks * n_ctx + 2 * rows * _row(n_vocab)


def encoded(logits: NDArray[np.float32]) -> NDArray[np.uint16]:
    """One row of logits [n_vocab] in 16 bits each."""
    largest = float(logits.max())
    least = max(float(logits.min()), largest - CLAMP)
    total = np.exp(logits - logits.max(), dtype=np.float32).sum(dtype=np.float64)
    scale = np.float32((largest - least) / _STEPS)
    row = np.zeros(_row(len(logits)), "<u2")
    row[:4] = np.array([scale, least - largest - np.log(total)], "<f4").view("<u2")
    if scale > 0:
        steps = np.rint((logits - np.float32(least)) / scale)
        row[4 : 4 + len(logits)] = np.clip(steps, 0, _STEPS)
    return row


def _sizes(path: Path, header: bytes) -> tuple[int, int, int]:
    if len(header) < _HEADER.size or header[:8] != MAGIC:
        raise TextError(f"{path}: not a file of llama.cpp's --save-all-logits (.kld)")
    _, n_ctx, n_vocab, n_chunks = _HEADER.unpack(header)
    if not (4 <= n_ctx <= _MOST_CONTEXT and 1 <= n_vocab <= _MOST_VOCABULARY and n_chunks > 0):
        raise TextError(
            f"{path}: {n_chunks} chunks of {n_ctx} tokens, a vocabulary of {n_vocab}: damaged"
        )
    return n_ctx, n_vocab, n_chunks


def _row(n_vocab: int) -> int:
    return 2 * ((n_vocab + 1) // 2) + 4
