"""Tokens on their way into llama.cpp: checked, and laid out as its batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gemcut.errors import EngineError

Outputs = Literal["all", "last", "none"] | NDArray[np.bool_]


@dataclass(frozen=True)
class Span:
    """Tokens that one sequence reads next, at positions start, start + 1 ...

    `outputs` says which of them get logits: all, the last, none, or a boolean array [n].
    """

    seq: int
    start: int
    tokens: Sequence[int] | NDArray[np.int32]
    outputs: Outputs = "last"


class Batch:
    """llama.cpp's batch over numpy arrays, made once and filled for each decode."""

    def __init__(self, c: Any, capacity: int) -> None:
        self._token, self._pos = np.zeros(capacity, np.int32), np.zeros(capacity, np.int32)
        self._seq, self._one = np.zeros(capacity, np.int32), np.ones(capacity, np.int32)
        self._output = np.zeros(capacity, np.int8)
        # One pointer per token, to its entry in _seq.
        self._seqs = self._seq.ctypes.data + 4 * np.arange(capacity, dtype=np.uintp)
        self.struct = c.llama_batch()
        for name, array in (
            ("token", self._token),
            ("pos", self._pos),
            ("n_seq_id", self._one),
            ("seq_id", self._seqs),
            ("logits", self._output),
        ):
            pointer = dict(c.llama_batch._fields_)[name]
            setattr(self.struct, name, array.ctypes.data_as(pointer))

    def fill(self, spans: Sequence[Span], tokens: Sequence[NDArray[np.int32]]) -> int:
        """Take spans with their checked tokens; how many of these get logits.

        Raises:
            EngineError: outputs that are no such word, or not of the tokens' shape.
        """
        begin = count = 0
        for span, row in zip(spans, tokens, strict=True):
            end = begin + row.size
            self._token[begin:end] = row
            self._pos[begin:end] = span.start
            if row.size > 1:
                self._pos[begin:end] += np.arange(row.size, dtype=np.int32)
            self._seq[begin:end] = span.seq
            count += self._mark(begin, end, span.outputs)
            begin = end
        self.struct.n_tokens = begin
        return count

    def take(self, token: int, position: int, seq: int) -> None:
        """Take one token, which gets logits."""
        self._token[0], self._pos[0], self._seq[0], self._output[0] = token, position, seq, 1
        self.struct.n_tokens = 1

    def _mark(self, begin: int, end: int, outputs: Outputs) -> int:
        """Note which tokens get logits; how many."""
        if not isinstance(outputs, str):
            mask = np.asarray(outputs, dtype=bool)
            if mask.shape != (end - begin,):
                raise EngineError(f"outputs have shape {mask.shape}, the tokens ({end - begin},)")
            self._output[begin:end] = mask
            return int(mask.sum())
        if outputs not in ("all", "last", "none"):
            raise EngineError(f"outputs is {outputs!r}, wanted all, last, none or a boolean array")
        self._output[begin:end] = outputs == "all"
        self._output[end - 1] = outputs != "none"
        return {"all": end - begin, "last": 1, "none": 0}[outputs]


def spans_of(tokens: ArrayLike, start: int, seq: int, outputs: Outputs) -> list[Span]:
    """Tokens [n] of sequence `seq`, or [n_seqs, n] of seq, seq + 1 ..., as spans.

    Raises:
        EngineError: tokens of another shape, or outputs of another shape than theirs.
    """
    given = np.asarray(tokens)
    if given.ndim == 1:
        return [Span(seq, start, given, outputs)]
    if given.ndim != 2 or not given.size:
        raise _no_tokens(given)
    if isinstance(outputs, str):
        return [Span(seq + i, start, row, outputs) for i, row in enumerate(given)]
    masks = np.atleast_2d(np.asarray(outputs, dtype=bool))
    if masks.shape != given.shape:
        raise EngineError(f"outputs have shape {masks.shape}, the tokens {given.shape}")
    rows = enumerate(zip(given, masks, strict=True))
    return [Span(seq + i, start, row, mask) for i, (row, mask) in rows]


def checked_tokens(tokens: ArrayLike, n_vocab: int) -> NDArray[np.int32]:
    """Tokens [n], checked against the vocabulary. Raises EngineError."""
    given = np.asarray(tokens)
    if given.ndim != 1 or not given.size or given.dtype.kind not in "iu":
        raise _no_tokens(given)
    # Of one token, as in most decodes, no extreme need be looked for.
    low, high = (given[0], given[0]) if given.size == 1 else (given.min(), given.max())
    if low < 0 or high >= n_vocab:
        raise EngineError(f"tokens from {low} to {high}, the vocabulary has 0 to {n_vocab - 1}")
    return given


def _no_tokens(given: NDArray[Any]) -> EngineError:
    return EngineError(
        f"tokens are {given.dtype} of shape {given.shape}, wanted integers [n] or [n_seqs, n]"
    )
