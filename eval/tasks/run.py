"""Let files answer tasks, one file after the other, and compare their answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from gemcut.engine import ContextOptions, ModelOptions
from gemcut.errors import GemcutError, UsageError
from gemcut.eval.scoring.column import REFERENCE, Column
from gemcut.eval.statistics.intervals import Estimate
from gemcut.eval.statistics.proportions import mcnemar, wilson
from gemcut.eval.tasks.reading import read_task
from gemcut.eval.tasks.result import Answers, TaskResult, TaskRow
from gemcut.eval.tasks.scoring import Question, answer, chosen, groups, question
from gemcut.eval.tasks.task import WINOGRANDE, Task
from gemcut.llama import Context, Model

# (items answered, items in all over tasks and columns).
Progress = Callable[[int, int], None]
_Outcome = Answers | str  # or why there are none

# What is read at once, unless one item takes more: each expert is then read for many tokens.
_CELLS = 2048
_SEQUENCES = 32
_OUTPUT_BYTES = 1 << 28


def run_tasks(
    paths: Sequence[Path | str],
    columns: Sequence[Column],
    options: Mapping[Path, ModelOptions],
    n_ctx: int | None = None,
    limit: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    seed: int | None = 0,
) -> tuple[TaskResult, ...]:
    """Every column's answers to every task; what fails in one column is told in its row.

    Args:
        paths: files of tasks, as `read_task` takes them.
        columns: the reference first, if there is one.
        options: how each file is loaded.
        n_ctx: tokens that are held at once; an item's texts together have no more. None: enough.
        limit: of each task so many items.
        seed: which ones: a sample drawn with it, in the file's order, by numpy's generator.
            llama.cpp's sample is another one, and differs with the C++ library. None: the first.

    Raises:
        TextError: a task cannot be read.
        UsageError: no column, or a limit below 1.
        GemcutError: no column could answer anything: what the first one failed of.
    """
    if not columns or (limit is not None and limit < 1):
        raise UsageError("tasks need a file to answer them, and a limit of 1 item or more")
    tasks = [read_task(path) for path in paths]
    picks = [_picked(len(task.items), limit, seed) for task in tasks]
    asked = [
        replace(task, items=tuple(task.items[i] for i in places))
        for task, places in zip(tasks, picks, strict=True)
    ]
    run = _Run(asked, n_ctx, threads, len(columns), progress)
    outcomes: list[list[_Outcome]] = []
    for path, same in groupby(columns, key=lambda column: column.file.path):
        outcomes += run.answers(path, options.get(path, ModelOptions()), list(same))
    run.check()
    return tuple(
        _result(task, places, columns, found)
        for task, places, found in zip(asked, picks, zip(*outcomes, strict=True), strict=True)
    )


class _Run:
    """Tasks on their way through the columns."""

    def __init__(
        self,
        tasks: Sequence[Task],
        n_ctx: int | None,
        threads: int | None,
        n_columns: int,
        progress: Progress | None,
    ) -> None:
        self._tasks, self._n_ctx, self._threads = tasks, n_ctx, threads
        self._progress, self._done = progress, 0
        self._all = n_columns * sum(len(task.items) for task in tasks)
        self._answered, self._failure = not tasks, GemcutError()

    def answers(
        self, path: Path, options: ModelOptions, columns: Sequence[Column]
    ) -> list[list[_Outcome]]:
        """Of the columns of one file, for each task."""
        try:
            with Model.load(path, options) as model:
                return [[self._outcome(model, c, task) for task in self._tasks] for c in columns]
        except GemcutError as error:
            return [[self._failed(error) for _ in self._tasks] for _ in columns]

    def check(self) -> None:
        """Raise what failed first if everything did."""
        if not self._answered:
            raise self._failure

    def _outcome(self, model: Model, column: Column, task: Task) -> _Outcome:
        before = self._done
        try:
            found = self._answers(model, column, task)
        except GemcutError as error:
            return self._failed(error)
        finally:
            self._advance(before + len(task.items) - self._done)
        self._answered = True
        return found

    def _answers(self, model: Model, column: Column, task: Task) -> Answers:
        questions = [question(model, item) for item in task.items]
        with Context(model, self._shape(model, column, questions)) as context:
            scores = []
            for group in groups(questions, context):
                scores += answer(context, [questions[number] for number in group])
                self._advance(len(group))
        return chosen(scores, task.items)

    def _shape(self, model: Model, column: Column, questions: Sequence[Question]) -> ContextOptions:
        """A context for several questions at once; a state for each sequence may be large."""
        cells = max(max(q.cells for q in questions), min(_CELLS, sum(q.cells for q in questions)))
        most = max(len(q.rows) for q in questions)
        n_seq = most if model.recurrent else max(most, _SEQUENCES)
        n_ctx = self._n_ctx or cells
        n_outputs = max(n_seq, min(n_ctx, _OUTPUT_BYTES // (4 * model.n_vocab)))
        plain = column.context(n_ctx, n_outputs, self._threads)
        return replace(plain, n_seq=n_seq, kv_unified=True)

    def _failed(self, error: GemcutError) -> str:
        if not str(self._failure):
            self._failure = error
        return str(error)

    def _advance(self, items: int) -> None:
        self._done += items
        if self._progress and items:
            self._progress(self._done, self._all)


def _picked(count: int, limit: int | None, seed: int | None) -> tuple[int, ...]:
    """The places of the items that are asked, in order."""
    if limit is None or limit >= count:
        return tuple(range(count))
    if seed is None:
        return tuple(range(limit))
    drawn = np.random.default_rng(seed).choice(count, limit, replace=False)
    return tuple(sorted(map(int, drawn)))


def _result(
    task: Task, places: tuple[int, ...], columns: Sequence[Column], found: Sequence[_Outcome]
) -> TaskResult:
    first = found[0] if columns[0].role == REFERENCE else None
    reference = first if isinstance(first, Answers) else None
    rows = [
        _row(task, column, outcome, None if outcome is first else reference)
        for column, outcome in zip(columns, found, strict=True)
    ]
    return TaskResult(task.name, task.kind, task.sha256, len(task.items), tuple(rows), places)


def _row(task: Task, column: Column, found: _Outcome, reference: Answers | None) -> TaskRow:
    if isinstance(found, str):
        none = np.zeros(0, np.bool_), np.zeros(0, np.int32)
        return TaskRow(column.name, None, *none, failure=found)
    row = TaskRow(
        column.name,
        _share(found.correct),
        found.correct,
        found.chosen,
        accuracy_by_bytes=None if task.kind == WINOGRANDE else _by_bytes(task, found),
        by_domain=_by_domain(task, found),
    )
    return row if reference is None else _against(row, reference)


def _against(row: TaskRow, reference: Answers) -> TaskRow:
    """A row with what is other than in the reference's."""
    lost = int((reference.correct & ~row.correct).sum())
    gained = int((row.correct & ~reference.correct).sum())
    changed = int((row.chosen != reference.chosen).sum())
    p_value = mcnemar(lost, gained)
    return replace(row, changed=changed, lost=lost, gained=gained, p_value=p_value)


def _share(correct: Sequence[bool] | np.ndarray) -> Estimate:
    return wilson(int(np.sum(correct)), len(correct))


def _by_bytes(task: Task, found: Answers) -> Estimate:
    pairs = zip(found.by_bytes, task.items, strict=True)
    return _share([int(number) in item.correct for number, item in pairs])


def _by_domain(task: Task, found: Answers) -> dict[str, Estimate]:
    domains = [item.domain for item in task.items]
    if len(set(domains)) < 2:
        return {}
    return {
        each: _share([ok for ok, of in zip(found.correct, domains, strict=True) if of == each])
        for each in dict.fromkeys(domains)
    }
