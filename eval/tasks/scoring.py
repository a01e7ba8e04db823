"""How likely a file finds the texts of a question, as llama.cpp scores them.

All texts of an item begin alike. That beginning is read once, in the cells of one sequence, and the
texts go on from it in sequences of their own; several items are read at once. What is scored of a
text is its mean log-probability a token

  * of what the texts do not have in common: HellaSwag, multiple choice (`hellaswag_score`,
    `multiple_choice_score` in llama.cpp's `tools/perplexity/perplexity.cpp`);
  * of what follows the choice, without the last token, which is mostly the full stop: Winogrande
    (`winogrande_score`). Where little follows the beginning, the choice counts as well; llama.cpp
    then takes the second text's first logits from a wrong place, which is not done here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from gemcut.errors import EngineError, TextError
from gemcut.eval.tasks.result import Answers
from gemcut.eval.tasks.task import Item
from gemcut.llama import Context, Model, Span
from gemcut.score import Logits

Tokens = NDArray[np.int32]

# llama.cpp's k_min_trailing_ctx: with so few tokens after the beginning, choices count as well.
_FEW = 3


@dataclass(frozen=True)
class Question:
    """An item in tokens.

    rows: the whole texts. shared: tokens that all begin with; each has more.
    scored: of each text the range of tokens whose probability decides.
    told: where the choice itself begins, at most `shared`; None where an ending is scored.
    n_bytes: of each choice.
    """

    rows: tuple[Tokens, ...]
    shared: int
    scored: tuple[range, ...]
    told: int | None
    n_bytes: tuple[int, ...]

    @property
    def cells(self) -> int:
        """What it takes of a cache: the last token of a text need not be read."""
        return self.shared + sum(len(row) - 1 - self.shared for row in self.rows)

    def predicted(self, row: int) -> range:
        """The tokens of a text whose probability is asked for."""
        first, stop = self.scored[row].start, self.scored[row].stop
        return range(first if self.told is None else self.told, stop)


def question(model: Model, item: Item) -> Question:
    """The tokens of an item. Raises TextError: its texts have no token in common, or are alike."""
    rows = tuple(model.tokenize(text) for text in item.texts())
    longest = min(map(len, rows)) - 1
    apart = np.flatnonzero([len({int(row[i]) for row in rows}) > 1 for i in range(longest)])
    shared = int(apart[0]) if apart.size else longest
    if shared < 1:
        raise TextError("the texts have no token in common to begin with: wanted a question")
    n_bytes = tuple(len(choice.encode()) for choice in item.choices)
    if item.ending:
        return Question(rows, shared, _endings(model, item, rows, shared), None, n_bytes)
    told = min(shared, max(1, len(model.tokenize(item.context))))
    return Question(rows, shared, tuple(range(shared, len(row)) for row in rows), told, n_bytes)


def _endings(model: Model, item: Item, rows: Sequence[Tokens], shared: int) -> tuple[range, ...]:
    """What is scored of each text where its ending counts."""
    begun = [len(model.tokenize(item.begun(choice))) for choice in item.choices]
    if min(map(len, rows)) - shared <= _FEW:
        begun = [shared] * len(rows)
    starts = [min(max(begin, shared), len(row) - 1) for begin, row in zip(begun, rows, strict=True)]
    spare = [len(row) - start > 1 for start, row in zip(starts, rows, strict=True)]
    return tuple(
        range(start, len(row) - short)
        for start, row, short in zip(starts, rows, spare, strict=True)
    )


def groups(questions: Sequence[Question], context: Context) -> Iterator[Sequence[int]]:
    """The questions that are read at once, by number: as many as there is room for.

    Raises:
        TextError: one is too long for the context.
    """
    cells, room, free, begin = context.n_ctx_seq, 0, 0, 0
    for number, one in enumerate(questions):
        if one.cells > cells:
            raise TextError(
                f"item {number + 1} takes {one.cells} tokens, the context has {cells}: "
                "use a larger one"
            )
        if one.cells > room or len(one.rows) > free:
            if number > begin:
                yield range(begin, number)
            begin, room, free = number, cells, context.options.n_seq
        room, free = room - one.cells, free - len(one.rows)
    if questions:
        yield range(begin, len(questions))


def answer(context: Context, questions: Sequence[Question]) -> list[NDArray[np.float64]]:
    """Log-probabilities of the texts of questions that fit into the context together.

    Returns for each question [2, n_choices]: the mean over the scored tokens, and the sum over
    all of the choice per byte (NaN where an ending is scored).

    Raises:
        EngineError: it does not decode, or the logits are not finite.
    """
    context.forget()
    starts = list(accumulate((len(one.rows) for one in questions), initial=0))[:-1]
    likely = _Likelihoods(context)
    likely.read([_beginning(one, seq) for one, seq in zip(questions, starts, strict=True)])
    for one, seq in zip(questions, starts, strict=True):
        context.share(seq, range(seq + 1, seq + len(one.rows)))
    likely.read([p for one, s in zip(questions, starts, strict=True) for p in _rests(one, s)])
    return [_totals(one, seq, likely) for one, seq in zip(questions, starts, strict=True)]


def chosen(scores: Sequence[NDArray[np.float64]], items: Sequence[Item]) -> Answers:
    """The likeliest choice of every item; of equal ones the first."""
    best = np.array([each.argmax(axis=1) for each in scores], np.int32).reshape(-1, 2)
    correct = [int(number) in item.correct for number, item in zip(best[:, 0], items, strict=True)]
    return Answers(best[:, 0], np.array(correct, np.bool_), best[:, 1])


# --- reading ---

Targets = dict[int, set[int]]  # by position, the tokens whose probability is asked for there


@dataclass(frozen=True)
class _Passage:
    """Tokens that a sequence reads, from a position on, and what is asked for."""

    seq: int
    start: int
    tokens: Tokens
    targets: Targets

    def span(self, begin: int, end: int) -> Span:
        """A part of it."""
        places = range(self.start + begin, self.start + end)
        mask = np.array([place in self.targets for place in places])
        return Span(self.seq, places.start, self.tokens[begin:end], mask)


def _beginning(one: Question, seq: int) -> _Passage:
    """What the texts have in common."""
    targets: Targets = {}
    for number, row in enumerate(one.rows):
        for place in one.predicted(number):
            if place <= one.shared:
                targets.setdefault(place - 1, set()).add(int(row[place]))
    return _Passage(seq, 0, one.rows[0][: one.shared], targets)


def _rests(one: Question, seq: int) -> Iterator[_Passage]:
    """What each text has besides, without its last token."""
    for number, row in enumerate(one.rows):
        places = one.predicted(number)
        targets = {place - 1: {int(row[place])} for place in places if place > one.shared}
        if targets:
            tokens = row[one.shared : max(targets) + 1]
            yield _Passage(seq + number, one.shared, tokens, targets)


class _Likelihoods:
    """ln p of tokens: by sequence, the position before them, and the token."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.of: dict[tuple[int, int, int], float] = {}

    def read(self, passages: Sequence[_Passage]) -> None:
        """Read passages of different sequences, in batches that the context has outputs for."""
        for batch in self._batches(passages):
            logits = self._context.run([passage.span(*part) for passage, part in batch])
            totals = _log_totals(logits)
            if not np.isfinite(totals).all():
                raise EngineError("logits are not finite: the file is damaged, or a type is faulty")
            row = 0
            for passage, (begin, end) in batch:
                for place in range(passage.start + begin, passage.start + end):
                    for token in passage.targets.get(place, ()):
                        key = passage.seq, place, token
                        self.of[key] = float(logits[row, token] - totals[row])
                    row += place in passage.targets

    def _batches(
        self, passages: Sequence[_Passage]
    ) -> Iterator[list[tuple[_Passage, tuple[int, int]]]]:
        """Parts of passages: in each batch no sequence twice, and no more outputs than may be."""
        batch: list[tuple[_Passage, tuple[int, int]]] = []
        room = self._context.n_outputs_max
        for passage in passages:
            begin = 0
            while begin < len(passage.tokens):
                end = _reached(passage, begin, room)
                if end > begin:
                    batch.append((passage, (begin, end)))
                    room -= sum(passage.start + i in passage.targets for i in range(begin, end))
                begin = end
                if begin < len(passage.tokens):
                    yield batch
                    batch, room = [], self._context.n_outputs_max
        if batch:
            yield batch


def _reached(passage: _Passage, begin: int, outputs: int) -> int:
    """How far a passage can be read with so many outputs."""
    places = [place - passage.start for place in sorted(passage.targets)]
    left = [place for place in places if place >= begin]
    return left[outputs] if len(left) > outputs else len(passage.tokens)


def _log_totals(logits: Logits) -> NDArray[np.float64]:
    """ln sum exp of each row [n, n_vocab], row by row: no copy of all."""
    totals = np.empty(len(logits))
    for row, values in enumerate(logits):
        peak = values.max()
        totals[row] = peak + np.log(np.exp(values - peak).sum(dtype=np.float64))
    return totals


def _totals(one: Question, seq: int, likely: _Likelihoods) -> NDArray[np.float64]:
    found = np.full((2, len(one.rows)), np.nan)
    for number, row in enumerate(one.rows):
        places = one.predicted(number)
        of = [
            likely.of[seq + (number if place > one.shared else 0), place - 1, int(row[place])]
            for place in places
        ]
        scored = one.scored[number]
        found[0, number] = np.mean(of[scored.start - places.start :])
        if one.told is not None:
            found[1, number] = np.sum(of) / one.n_bytes[number]
    return found
