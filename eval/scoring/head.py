"""Seen while the reference computes: its last hidden states, and how it makes logits of them."""

import numpy as np
from numpy.typing import NDArray

from gemcut.errors import EngineError
from gemcut.llama.head import Step, steps_to
from gemcut.llama.tensor import Tensor
from gemcut.score import Logits

# llama.cpp's names of the states behind the last norm, of scored tokens alone, and of the logits.
_HIDDEN, _LOGITS = "result_norm", "result_output"


class HeadWatch:
    """The callbacks of a context that decodes one sequence at a time.

    steps: from hidden states to logits; known after the first decode.
    """

    def __init__(self) -> None:
        self.steps: tuple[Step, ...] = ()
        self.trouble = f"llama.cpp computes nothing called {_LOGITS}"
        self._parts: list[NDArray[np.float32]] = []

    def wants(self, name: str, tensor: Tensor) -> bool:
        """Only hidden states are wanted; the steps are read off the graph."""
        if name == _LOGITS and not self.steps and tensor.shape[-2]:
            try:
                self.steps, self.trouble = steps_to(tensor, _HIDDEN), ""
            except EngineError as error:
                self.trouble = str(error)
        return name == _HIDDEN

    def on_tensor(self, name: str, tensor: Tensor) -> None:
        """Keep the hidden states of a part of the batch."""
        if tensor.shape[-2]:
            self._parts.append(tensor.read()[0, 0])

    def take(self) -> NDArray[np.float32]:
        """The hidden states [n_outputs, n_embd] of what was decoded since the last call."""
        parts, self._parts = self._parts, []
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def divergence(reference: Logits, other: Logits) -> float:
    """Mean KL divergence in nats of logits [n, n_vocab] that hardly differ: NaN if one is.

    To second order in the differences d it is half of their variance under the reference, which
    is exact where they are small: the usual formula loses differences below 1e-7 in rounding.
    """
    total = 0.0
    for x, y in zip(reference, other, strict=True):
        p = np.exp(x - x.max(), dtype=np.float64)
        p /= p.sum()
        d = x.astype(np.float64) - y
        total += float(p @ (d - p @ d) ** 2) / 2
    return total / max(len(reference), 1)
