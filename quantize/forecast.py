"""How long measuring takes, told before it begins: encoding takes the time, and its speed is known.

What each type's encoder does per second is measured on a few random rows; ggml's slowest is a
hundred times slower than its fastest.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import thread_time

import numpy as np

from gemcut import ggml
from gemcut.errors import UsageError
from gemcut.quantize.subject import Sampling, Subject
from gemcut.tensor_sensitivity import Candidate

Speeds = Mapping[str, float]  # type to weights per second, through the type and back

_ROWS, _COLUMNS = 16, 1024  # that a speed is measured on
_RUNS = 3
_FEWEST = 4  # rows, below which standard errors say nothing


@dataclass(frozen=True)
class Forecast:
    """Seconds that measuring takes: if the first samples suffice, and if no second one does."""

    least: float
    most: float


def speeds(candidates: Iterable[Candidate]) -> dict[str, float]:
    """How fast each type is on this machine, on one core that does nothing else.

    The first call of some types makes ggml build tables, which takes seconds and is not counted.
    """
    rows, importance = _rows()
    return {
        kind.name: rows.size / _least(partial(_back, kind, rows, importance))
        for kind in {each.type for each in candidates}
    }


def encoding_speed(kind: ggml.Type, weighted: bool) -> float:
    """Weights per second into a type, as above; with importance, most types take longer."""
    rows, importance = _rows()
    given = importance if weighted and kind.quantized else None
    return rows.size / _least(lambda: ggml.quantize(kind, rows, given))


def _rows() -> tuple[ggml.Floats, ggml.Floats]:
    random = np.random.default_rng(0)
    rows = random.standard_normal((_ROWS, _COLUMNS), np.float32)
    return rows, np.exp(random.standard_normal(_COLUMNS, np.float32))


def _least(work: Callable[[], object]) -> float:
    """The least CPU seconds that a piece of work takes, once it was done before."""
    seconds = []
    for _ in range(_RUNS + 1):
        start = thread_time()
        work()
        seconds.append(thread_time() - start)
    return max(min(seconds[1:]), 1e-6)


def _back(kind: ggml.Type, rows: ggml.Floats, importance: ggml.Floats) -> None:
    back = ggml.dequantize(kind, ggml.quantize(kind, rows, importance), _COLUMNS)
    np.einsum("ij,ij,j->i", back - rows, back - rows, importance, dtype=np.float64)


def forecast(
    subjects: Sequence[Subject], sampling: Sampling, speeds: Speeds, threads: int
) -> Forecast:
    """How long measuring the subjects will take."""
    least = sum(_seconds(each, each.first(sampling), speeds) for each in subjects)
    most = sum(_seconds(each, each.most(sampling), speeds) for each in subjects)
    return Forecast(least / threads, most / threads)


def fitted(
    subjects: Sequence[Subject], sampling: Sampling, speeds: Speeds, threads: int, seconds: float
) -> Sampling:
    """Sampling of fewer rows, so that measuring takes no longer than this.

    Raises:
        UsageError: the least that says anything takes longer.
    """
    while forecast(subjects, sampling, speeds, threads).most > seconds:
        if sampling.rows // 2 < _FEWEST:
            least = forecast(subjects, sampling, speeds, threads).most
            raise UsageError(
                f"measuring takes at least {least / 60:.2g} minutes here, wanted "
                f"{seconds / 60:.2g}: allow more, or name fewer types"
            )
        rows = sampling.rows // 2
        sampling = replace(sampling, rows=rows, first=min(sampling.first, rows))
    return sampling


def _seconds(subject: Subject, rows: int, speeds: Speeds) -> float:
    """Time of measuring so many rows of a tensor, on one core."""
    drawn = int(subject.strata.counts(rows).sum())
    return sum(drawn * subject.width(each) / speeds[each.type.name] for each in subject.candidates)
