"""Tokens on their way into llama.cpp: checked, and laid out as its batch."""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gemcut.errors import EngineError

Outputs = Literal["all", "last", "none"] | NDArray[np.bool_]


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

    def fill(
        self, rows: NDArray[np.int32], wanted: NDArray[np.bool_], start: int, seq: int
    ) -> None:
        """Take tokens [n_seqs, n] at positions start ... of sequences seq ..."""
        (count, length), size = rows.shape, rows.size
        self.struct.n_tokens = size
        self._token[:size] = rows.ravel()
        self._pos[:size] = np.tile(np.arange(start, start + length), count)
        self._seq[:size] = np.repeat(np.arange(seq, seq + count), length)
        self._output[:size] = wanted.ravel()


def token_rows(tokens: ArrayLike, n_vocab: int) -> NDArray[np.int32]:
    """Tokens as [n_seqs, n], checked against the vocabulary."""
    given = np.asarray(tokens)
    if given.ndim not in (1, 2) or not given.size or given.dtype.kind not in "iu":
        raise EngineError(
            f"tokens are {given.dtype} of shape {given.shape}, wanted integers [n] or [n_seqs, n]"
        )
    low, high = int(given.min()), int(given.max())
    if low < 0 or high >= n_vocab:
        raise EngineError(f"tokens from {low} to {high}, the vocabulary has 0 to {n_vocab - 1}")
    return np.atleast_2d(given).astype(np.int32)


def wanted_outputs(rows: NDArray[np.int32], outputs: Outputs) -> NDArray[np.bool_]:
    """Which tokens get logits: bool [n_seqs, n]."""
    if not isinstance(outputs, str):
        mask = np.atleast_2d(np.asarray(outputs, dtype=bool))
        if mask.shape != rows.shape:
            raise EngineError(f"outputs have shape {mask.shape}, the tokens {rows.shape}")
        return mask
    if outputs not in ("all", "last", "none"):
        raise EngineError(f"outputs is {outputs!r}, wanted all, last, none or a boolean array")
    mask = np.full(rows.shape, outputs == "all")
    mask[:, -1] = outputs != "none"
    return mask
