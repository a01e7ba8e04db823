"""Drawing the next token from the logits of a context."""

import secrets

import numpy as np

from gemcut.engine import Sampling
from gemcut.errors import EngineError
from gemcut.llama.context import Context
from gemcut.llama.library import require
from gemcut.llama.owner import Owner


class Sampler(Owner):
    """llama.cpp's chain: repeat penalty, top-k, top-p, min-p, temperature, a draw.

    Close it, or use it as a context manager. It remembers what it drew, for the penalty.
    """

    def __init__(self, n_vocab: int, sampling: Sampling | None = None) -> None:
        self._c, sampling = require(), sampling or Sampling()
        c = self._c
        handle = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
        super().__init__("sampler", handle, c.llama_sampler_free)
        chain = []
        if sampling.repeat_penalty != 1.0:
            last, repeat = sampling.repeat_last_n, sampling.repeat_penalty
            chain.append(c.llama_sampler_init_penalties(n_vocab, last, repeat, 0.0, 0.0))
        if sampling.temperature <= 0:
            chain.append(c.llama_sampler_init_greedy())
        else:
            seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
            chain.append(c.llama_sampler_init_top_k(sampling.top_k))
            chain.append(c.llama_sampler_init_top_p(sampling.top_p, 1))
            chain.append(c.llama_sampler_init_min_p(sampling.min_p, 1))
            chain.append(c.llama_sampler_init_temp(sampling.temperature))
            chain.append(c.llama_sampler_init_dist(seed & 0xFFFFFFFF))
        for link in chain:
            c.llama_sampler_chain_add(handle, link)

    def sample(self, context: Context, index: int = -1) -> int:
        """Draw a token from a row of the last decode's logits; -1 is the last row.

        Raises:
            EngineError: the last decode left no such row, or one that is not all numbers.
        """
        rows = len(context.logits)
        if not -rows <= index < rows:
            raise EngineError(f"row {index} of logits asked for, the last decode left {rows}")
        if np.isnan(context.logits[index]).any():  # llama.cpp would end the process
            raise EngineError("the model's logits are not numbers: is the file damaged?")
        from_end = index if index < 0 else index - rows
        return int(self._c.llama_sampler_sample(self.handle, context.handle, from_end))

    def reset(self) -> None:
        """Forget what was drawn so far."""
        self._c.llama_sampler_reset(self.handle)
