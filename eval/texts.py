"""Texts to be scored, and how they are cut: exactly as llama.cpp's perplexity does it.

A text is tokenised once and cut into chunks of one context length that do not overlap; the tail is
dropped. Where the vocabulary wants a BOS, it *replaces* the first token of every chunk. The second
half of a chunk is scored, so that every scored token has at least half a context before it
(`tools/perplexity/perplexity.cpp` of llama.cpp).
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gemcut.errors import TextError, UsageError

Tokens = NDArray[np.int32]

# An error bar over chunks needs two of them; llama.cpp wants two as well.
MIN_CHUNKS = 2


@dataclass(frozen=True)
class Text:
    """A text with the digest of the bytes it came from."""

    name: str
    content: str
    sha256: str
    n_bytes: int

    @classmethod
    def of(cls, name: str, content: str) -> Self:
        """A text that is not a file. Raises TextError if it is empty."""
        return cls._decoded(name, content.encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """A text file in UTF-8. Raises TextError: missing, unreadable, empty, not UTF-8."""
        try:
            return cls._decoded(path.name, path.read_bytes())
        except OSError as error:
            raise TextError(f"{path}: cannot read this text: {error.strerror}") from error

    @classmethod
    def _decoded(cls, name: str, data: bytes) -> Self:
        # Replacing bytes would change the scores without a word, so they are refused instead.
        try:
            content = data.decode()
        except UnicodeDecodeError as error:
            raise TextError(
                f"{name}: not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
                "convert it first, for instance with iconv"
            ) from error
        if not content.strip():
            raise TextError(f"{name}: the text is empty")
        # llama.cpp drops one last newline of a prompt file.
        return cls(name, content.removesuffix("\n"), sha256(data).hexdigest(), len(data))


def cut(tokens: Tokens, n_ctx: int, limit: int | None, bos: int | None, name: str) -> Tokens:
    """The chunks of a tokenised text: [n_chunks, n_ctx], at most `limit`, BOS put in place.

    Raises:
        TextError: the text `name` has fewer than two chunks of tokens.
        UsageError: a chunk of so few tokens predicts none.
    """
    if n_ctx < 2:
        raise UsageError(f"a context of {n_ctx} tokens: wanted 2 or more")
    wanted = MIN_CHUNKS * n_ctx
    if len(tokens) < wanted:
        raise TextError(
            f"{name}: too short: {len(tokens)} tokens, wanted {wanted} "
            f"({MIN_CHUNKS} chunks of {n_ctx}); use a longer text or a smaller context"
        )
    n_chunks = min(len(tokens) // n_ctx, limit or len(tokens))
    chunks = tokens[: n_chunks * n_ctx].reshape(n_chunks, n_ctx).copy()
    if bos is not None:
        chunks[:, 0] = bos
    return chunks


def scored(n_ctx: int) -> NDArray[np.bool_]:
    """Which positions of a chunk predict a scored token: n_ctx/2 .. n_ctx-2, as a mask [n_ctx]."""
    mask = np.zeros(n_ctx, np.bool_)
    mask[n_ctx // 2 : n_ctx - 1] = True
    return mask


def targets(chunk: Tokens) -> Tokens:
    """The token that follows each scored position of a chunk."""
    return chunk[len(chunk) // 2 + 1 :]
