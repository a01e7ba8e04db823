"""How the minutes for measuring a model are divided, and what they suffice for.

A quarter goes to importance, of which more text makes little more; what is left is divided between
the tensors' errors and the probe as `measure` does it: up to half for the errors, and the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import numpy as np

from gemcut.convert.model import Model
from gemcut.quantize.forecast import Forecast, fitted, forecast, speeds
from gemcut.quantize.group_weights import Work
from gemcut.quantize.groups import groupings
from gemcut.quantize.subject import Sampling, Subject, subject

_IMPORTANCE = 1 / 4
CHUNKS = (16, 8, 4)  # that may be probed on; fewer have no error bar to speak of


@dataclass(frozen=True)
class Division:
    """Minutes for collecting importance, and at least so many for all that follows."""

    importance: float
    rest: float

    def left(self, spent: float) -> float:
        """Minutes for what follows when importance took so many: none are lost."""
        return max(self.importance + self.rest - spent, self.rest)


class Rate:
    """Progress that is passed on, and how fast it was."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        """The clock runs from now on."""
        self._progress, self._start = progress, monotonic()
        self._told: list[tuple[float, int]] = []  # seconds, and how much was done

    def __call__(self, done: int, total: int) -> None:
        """Progress: done, and in all."""
        self._told.append((self.seconds, done))
        self._progress(done, total)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return monotonic() - self._start

    @property
    def each(self) -> float:
        """Seconds that one takes, without what went before the first; 0: nobody knows."""
        (start, first), (end, last) = self._told[:1] + self._told[-1:] or [(0.0, 0)] * 2
        return (end - start) / (last - first) if last > first else end / max(last, 1)


def divided(minutes: float) -> Division:
    """The minutes for a whole chain, divided."""
    return Division(_IMPORTANCE * minutes, (1 - _IMPORTANCE) * minutes)


def expected(model: Model, sampling: Sampling, threads: int, minutes: float | None) -> Forecast:
    """How long measuring the tensors' errors will take, with importance that is still to come.

    Args:
        minutes: for errors and the probe; None: as many as it takes.

    Raises:
        UsageError: they do not suffice for the least that says anything.
    """
    wanted = [_subject(model, number) for number in _cuttable(model)]
    known = speeds(each for one in wanted for each in one.candidates)
    if minutes is not None:
        sampling = fitted(wanted, sampling, known, threads, 60 * minutes / 2)
    return forecast(wanted, sampling, known, threads)


def probe_chunks(model: Model, seconds_per_chunk: float, minutes: float | None) -> int | None:
    """How many chunks to probe on; None: not even the coarsest groups can be probed in the time.

    Args:
        minutes: for errors and the probe; None: as many as it takes.
    """
    if minutes is None:
        return CHUNKS[0]
    *_, coarsest = groupings([model.tensors[number].name for number in _cuttable(model)])
    seconds = (Work(coarsest).passes + 1) * seconds_per_chunk
    return next((each for each in CHUNKS if each * seconds <= 60 * minutes / 2), None)


def _cuttable(model: Model) -> list[int]:
    return [n for n, each in enumerate(model.tensors) if not each.kept and each.quantizable]


def _subject(model: Model, number: int) -> Subject:
    """A tensor as it will be when there is importance of it; takes no memory."""
    tensor = model.tensors[number]
    ones = np.broadcast_to(np.float32(1), (tensor.matrices, tensor.columns))
    return subject(tensor, ones, np.full(tensor.matrices, 1 / tensor.matrices))
