"""What a task found: every item's answer, and how files differ on the same items."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gemcut.eval.statistics.intervals import Estimate


@dataclass(frozen=True)
class Answers:
    """What one file chose. chosen: int32 [n_items], the choice's number; correct: bool [n_items].

    by_bytes: int32 [n_items], the choice whose log-probability is highest per byte of its text
        instead of per token, as other harnesses have it.
    """

    chosen: NDArray[np.int32]
    correct: NDArray[np.bool_]
    by_bytes: NDArray[np.int32]


@dataclass(frozen=True)
class TaskRow:
    """One file's answers. correct: bool [n_items]; chosen: int [n_items].

    accuracy: with its Wilson interval; None where the file failed. accuracy_by_bytes: of the
    choices likeliest per byte instead of per token; None for Winogrande. by_domain: the accuracy
    of each domain's items, where there are several.
    Against the reference: lost and gained items, and the exact p-value of McNemar's test, that as
    many or more would differ by chance; None without one.
    """

    name: str
    accuracy: Estimate | None
    correct: NDArray[np.bool_] = field(repr=False)
    chosen: NDArray[np.int32] = field(repr=False)
    changed: int | None = None  # other answers than the reference's, right or wrong
    lost: int | None = None
    gained: int | None = None
    p_value: float | None = None
    failure: str | None = None
    accuracy_by_bytes: Estimate | None = None
    by_domain: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskResult:
    """One task file on all files, the reference first if there is one.

    items: of those asked, the places in the file; n_items: how many they are.
    """

    name: str
    kind: str  # hellaswag, winogrande, multiple-choice, jsonl
    sha256: str
    n_items: int
    rows: tuple[TaskRow, ...]
    items: tuple[int, ...] = field(default=(), repr=False)
