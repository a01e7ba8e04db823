"""The tokens that may come next, with their logits, as llama.cpp's samplers take them."""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TOKEN_DATA = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])


class Candidates:
    """llama.cpp's `llama_token_data_array` over numpy, made once and filled for each draw."""

    def __init__(self, c: Any, n_vocab: int) -> None:
        self._c = c
        self._data = np.empty(n_vocab, _TOKEN_DATA)
        # Making these anew for each draw would take longer than drawing.
        self._ids, self._logits = self._data["id"], self._data["logit"]
        self._all = np.arange(n_vocab, dtype=np.int32)
        self._start = self._data.ctypes.data_as(c.llama_token_data_p)
        self._array = c.llama_token_data_array()
        self._gap = 8.0  # below the best logit, where enough tokens were found last time

    def take(self, row: NDArray[np.float32], tokens: NDArray[np.intp] | None = None) -> None:
        """Take tokens of a row of logits; all of them by default."""
        size = len(row) if tokens is None else len(tokens)
        self._ids[:size] = self._all[:size] if tokens is None else tokens
        self._logits[:size] = row if tokens is None else row[tokens]
        self._array.data = self._start
        self._array.size, self._array.selected, self._array.sorted = size, -1, False

    def take_best(self, row: NDArray[np.float32], best: float, wanted: int) -> None:
        """Take the `wanted` best tokens and some more, given the best logit.

        With 262144 tokens, llama.cpp's own way of handing over all of them to keep 40 takes three
        times as long.
        """
        while True:
            tokens = np.flatnonzero(row >= best - self._gap)
            if len(tokens) >= wanted:
                break
            if self._gap > 1e6:  # fewer than wanted have a probability at all
                return self.take(row)
            self._gap *= 2
        if len(tokens) > 8 * wanted:
            self._gap *= 0.9
        return self.take(row, tokens)

    def apply(self, sampler: int) -> None:
        """Let a sampler of llama.cpp's change, drop or select."""
        self._c.llama_sampler_apply(sampler, ctypes.byref(self._array))

    def apply_by_parts(self, sampler: int, size: int) -> Iterator[None]:
        """Let a sampler that forbids go over so many tokens at a time: one may stop in between."""
        for begin in range(0, self._array.size, size):
            count = min(size, self._array.size - begin)
            data = self._data[begin:].ctypes.data_as(self._c.llama_token_data_p)
            part = self._c.llama_token_data_array(data, count, -1, False)
            self._c.llama_sampler_apply(sampler, ctypes.byref(part))
            yield

    def possible(self) -> int:
        """How many tokens are left that may be drawn."""
        return int(np.count_nonzero(self._logits[: self._array.size] > -np.inf))

    def drawn(self) -> int | None:
        """The token that was selected; None if none could be."""
        selected = self._array.selected
        if not 0 <= selected < self._array.size:
            return None
        found = self._array.data[selected]
        return int(found.id) if found.logit > -np.inf else None

    def allows(self, sampler: int, token: int) -> bool:
        """Whether a sampler that forbids leaves this token."""
        one = self._c.llama_token_data(token, 1.0, 0.0)
        array = self._c.llama_token_data_array(ctypes.pointer(one), 1, -1, False)
        self._c.llama_sampler_apply(sampler, ctypes.byref(array))
        return bool(one.logit > -np.inf)
