"""Pieces of text as a model reads them: tokens, and which of them are scored.

Raw text is cut exactly as llama.cpp's perplexity does it: tokenised once and cut into chunks of one
context length that do not overlap; the tail is dropped. Where the vocabulary wants a BOS, it
*replaces* the first token of every chunk. The second half of a chunk is scored, so that every
scored token has at least half a context before it (`tools/perplexity/perplexity.cpp`).
"""

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from gemcut.errors import TextError, UsageError

Tokens = NDArray[np.int32]
Mask = NDArray[np.bool_]

# An error bar over chunks needs two of them; llama.cpp wants two as well.
MIN_CHUNKS = 2
# Tokens that are computed at once: those of llama.cpp's ubatch, so that nothing is computed
# otherwise than in one batch.
PART = 512


@dataclass(frozen=True, eq=False)
class Chunk:
    """Tokens that are read at once, from an empty cache, and what is scored of them.

    tokens: int32 [n]. outputs: [n], the positions whose next token is scored; the last is not.
    text: which of the texts it comes from.
    """

    tokens: Tokens
    outputs: Mask
    text: int = 0

    @property
    def targets(self) -> Tokens:
        """The token that follows each scored position: [n_scored]."""
        return self.tokens[1:][self.outputs[:-1]]

    @property
    def n_scored(self) -> int:
        """How many tokens are scored."""
        return int(self.outputs.sum())

    @cached_property
    def digest(self) -> str:
        """What is read and scored, whatever text it came from."""
        outputs = np.packbits(self.outputs)
        return sha256(self.tokens.astype("<i4").tobytes() + outputs.tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Part(Chunk):
    """Tokens of a chunk that are computed at once, those before them being in the cache.

    A chunk's logits are as long as its text and as wide as the vocabulary; a part's are bounded.
    """

    whole: Chunk = field(kw_only=True)
    start: int = field(kw_only=True)  # position of its first token

    @property
    def targets(self) -> Tokens:
        """The token that follows each scored position: [n_scored]."""
        return self.whole.tokens[1:][self._places[:-1]]

    @property
    def rows(self) -> slice:
        """Its rows among the chunk's scored positions."""
        first = int(self.whole.outputs[: self.start].sum())
        return slice(first, first + self.n_scored)

    @cached_property
    def digest(self) -> str:
        """That of the chunk, and where the part begins if it is not all of it."""
        alone = len(self.tokens) == len(self.whole.tokens)
        return self.whole.digest if alone else f"{self.whole.digest}@{self.start}"

    @property
    def _places(self) -> Mask:
        mask = np.zeros_like(self.whole.outputs)
        mask[self.start : self.start + len(self.outputs)] = self.outputs
        return mask


def parts(chunk: Chunk, most: int = PART) -> list[Part]:
    """A chunk in pieces of at most so many tokens, in order."""
    return [
        Part(
            chunk.tokens[start : start + most],
            chunk.outputs[start : start + most],
            chunk.text,
            whole=chunk,
            start=start,
        )
        for start in range(0, len(chunk.tokens), most)
    ]


def most_outputs(chunk: Chunk) -> int:
    """Scored tokens of a part of it, at most: how many rows of logits are needed at once."""
    return max(part.n_scored for part in parts(chunk))


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


def half_scored(rows: Tokens, text: int = 0) -> list[Chunk]:
    """Rows [n_chunks, n_ctx] as chunks whose second half is scored."""
    return [Chunk(row, scored(len(row)), text) for row in rows]


def scored(n_ctx: int) -> Mask:
    """Which positions of a chunk predict a scored token: n_ctx/2 .. n_ctx-2, as a mask [n_ctx]."""
    mask = np.zeros(n_ctx, np.bool_)
    mask[n_ctx // 2 : n_ctx - 1] = True
    return mask
