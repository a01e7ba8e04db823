"""Drawing the next token from the logits of a context."""

import math
from collections.abc import Iterator
from ctypes import byref, c_int32
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemcut.engine import MAX_LAST, Sampling
from gemcut.errors import EngineError, UsageError
from gemcut.llama.candidates import Candidates
from gemcut.llama.constraint import Constraint
from gemcut.llama.context import Context
from gemcut.llama.library import require
from gemcut.llama.model import Model
from gemcut.llama.owner import Owner

_COLD = 1e-6  # logits divided by a lower temperature would not be finite
_FEW = 1000  # of top_k: up to here, picking the best tokens first pays
_RANDOM = 0xFFFFFFFF  # llama.cpp's word for another seed at every reset


class Sampler(Owner):
    """llama.cpp's chain in its usual order, and a grammar beside it; for one answer at a time.

    Bias, penalties, top-k, top-p, min-p, XTC, temperature, a draw. Close it, or use it as
    a context manager; its model closes it too. It remembers what it drew until `reset`.

    Raises:
        EngineError: a bias for a token that is not in the vocabulary.
    """

    def __init__(self, model: Model, sampling: Sampling | None = None) -> None:
        self._c, sampling = require(), sampling or Sampling()
        c, n_vocab, banned = self._c, model.n_vocab, _banned(self._c, model)
        if unknown := [token for token, _ in sampling.logit_bias if not 0 <= token < n_vocab]:
            raise EngineError(f"logit_bias for token {unknown[0]}, the vocabulary has {n_vocab}")
        grammar = sampling.grammar
        self._grammar = Constraint(model, grammar, sampling.thought) if grammar else None
        handle = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
        super().__init__("sampler", handle, c.llama_sampler_free)
        model.dependents.add(self)
        for link in _links(c, n_vocab, sampling, banned):
            c.llama_sampler_chain_add(handle, link)
        self._candidates, self._drawn = Candidates(c, n_vocab), 0
        self._wanted = _wanted(sampling, len(banned))
        # As many tokens as penalties may lower beside those that are wanted.
        self._last = _last(sampling) if _penalises(sampling) else 0
        cold = sampling.temperature < _COLD
        self._argmax = cold and not (sampling.logit_bias or banned or self._last)

    def close(self) -> None:
        """Free it."""
        if self._grammar:
            self._grammar.close()
        super().close()

    def sample(self, context: Context, index: int = -1) -> int:
        """Draw a token from a row of the last decode's logits; -1 is the last row.

        The penalties and the grammar take it into account from then on.

        Raises:
            EngineError: the last decode left no such row, or one that is not all numbers.
            UsageError: grammar or biases allow no token here, or the grammar takes too long.
        """
        rows = len(context.logits)
        if not -rows <= index < rows:
            raise EngineError(f"row {index} of logits asked for, the last decode left {rows}")
        row = context.logits[index]
        token = self._draw(row)
        self._drawn += 1
        if self._grammar and not self._grammar.allows(self._candidates, token):
            token = self._draw_allowed(row, self._grammar)
        self._c.llama_sampler_accept(self.handle, token)
        if self._grammar:
            self._grammar.accept(token)
        return token

    def reset(self) -> None:
        """Forget what was drawn so far; a seed draws the same again."""
        self._c.llama_sampler_reset(self.handle)
        self._drawn = 0
        if self._grammar:
            self._grammar.reset()

    def _draw(self, row: NDArray[np.float32]) -> int:
        if self._argmax:
            token = int(row.argmax())  # NaN, if there is one
            _check_finite(float(row[token]))
            return token
        best = float(row.max())  # NaN, if there is one: llama.cpp's sorting would not survive it
        _check_finite(best)
        if few := self._few():
            self._candidates.take_best(row, best, few)
        else:
            self._candidates.take(row)
        return self._choose("no token has a probability: is every one biased away?")

    def _draw_allowed(self, row: NDArray[np.float32], grammar: Constraint) -> int:
        """Draw again from what the grammar allows; asking it about every token is slow."""
        if few := self._few():
            self._candidates.take_best(row, float(row.max()), 16 * few)
            grammar.restrict(self._candidates)
        if not few or self._candidates.possible() < few:
            self._candidates.take(row)
            grammar.restrict(self._candidates)
        return self._choose("the grammar allows no token that the model has here: a dead end")

    def _few(self) -> int:
        """How many of the best tokens decide; 0: each of them may matter."""
        few = self._wanted + min(self._last, self._drawn)
        return few if self._wanted and few <= _FEW else 0

    def _choose(self, otherwise: str) -> int:
        self._candidates.apply(self.handle)
        token = self._candidates.drawn()
        if token is None:
            raise UsageError(otherwise)
        return token


def _links(c: Any, n_vocab: int, sampling: Sampling, banned: list[int]) -> Iterator[int]:
    """The samplers of the chain, in llama.cpp's usual order."""
    biases = [*sampling.logit_bias, *((token, -np.inf) for token in banned)]
    if biases:
        array = (c.llama_logit_bias * len(biases))(*biases)
        yield c.llama_sampler_init_logit_bias(n_vocab, len(biases), array)
    if _penalises(sampling):
        presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
        penalties = (_last(sampling), sampling.repeat_penalty, frequency, presence)
        yield c.llama_sampler_init_penalties(n_vocab, *penalties)
    if sampling.temperature < _COLD:
        yield c.llama_sampler_init_greedy()
        return
    seed = _RANDOM if sampling.seed is None else sampling.seed % _RANDOM
    yield c.llama_sampler_init_top_k(max(sampling.top_k, 0))
    yield c.llama_sampler_init_top_p(sampling.top_p, 1)
    yield c.llama_sampler_init_min_p(sampling.min_p, 1)
    yield c.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, 1, seed)
    yield c.llama_sampler_init_temp(sampling.temperature)
    yield c.llama_sampler_init_dist(seed)


def _penalises(sampling: Sampling) -> bool:
    penalties = sampling.repeat_penalty != 1 or sampling.presence_penalty
    return bool(sampling.repeat_last_n and (penalties or sampling.frequency_penalty))


def _last(sampling: Sampling) -> int:
    return sampling.repeat_last_n if sampling.repeat_last_n >= 0 else MAX_LAST


def _wanted(sampling: Sampling, banned: int) -> int:
    """How many of the best tokens hold those that are drawn from; 0: what is low may be raised."""
    raised = any(bias > 0 for _, bias in sampling.logit_bias) or (
        sampling.repeat_penalty < 1
        or min(sampling.presence_penalty, sampling.frequency_penalty) < 0
    )
    wanted = 1 if sampling.temperature < _COLD else sampling.top_k
    return 0 if raised or wanted < 1 else wanted + banned + len(sampling.logit_bias)


def _banned(c: Any, model: Model) -> list[int]:
    """Tokens that the file says must not be drawn, such as those that stand for images."""
    count = c_int32()
    tokens = c.llama_vocab_get_suppress_tokens(model.vocab, byref(count))
    return [int(token) for token in tokens[: count.value]] if count.value else []


def _check_finite(best: float) -> None:
    if not math.isfinite(best):
        raise EngineError("the model's logits are not numbers: is the file damaged?")
