"""A column at work: a loaded file that turns chunks into logits, and notes how long that takes."""

from pathlib import Path
from time import perf_counter
from typing import Protocol

from gemcut.closing import Closing
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.eval.files import check_same, state
from gemcut.eval.scoring.column import Column
from gemcut.eval.scoring.store import StoredReference
from gemcut.eval.texts.chunks import Part
from gemcut.llama import Context, Model
from gemcut.score import Logits


class Source(Protocol):
    """Where a reference's logits come from: a `Scorer`, a store, or a .kld file."""

    @property
    def cutoff(self) -> float | None:
        """As `gemcut.score.score` takes it."""

    def logits(self, part: Part) -> Logits:
        """Of the scored positions: [n_scored, n_vocab], valid until the next call."""


class Scorer:
    """A column with its context; `Models` makes it.

    seconds: of the last chunk; None if it was not timed, because a store looked on.

    Raises:
        EngineError: the file is another one by now than was described; or llama.cpp refuses.
    """

    cutoff = None  # these are logits

    def __init__(self, column: Column, model: Model, options: ContextOptions) -> None:
        self.column, self._model, self._options = column, model, options
        self._state = state(column.file.path)
        check_same(column.file)
        self._context = Context(model, options)
        self._store: StoredReference | None = None
        self.seconds: float | None = None

    @property
    def n_vocab(self) -> int:
        """The length of a row of logits."""
        return self._context.n_vocab

    @property
    def changed(self) -> bool:
        """Whether its file was written to, or replaced, since it was loaded."""
        return state(self.column.file.path) != self._state

    def logits(self, part: Part) -> Logits:
        """Logits of the scored positions: [n_scored, n_vocab], valid until the next call.

        A chunk's parts are read one after the other. Raises EngineError.
        """
        if not part.start:
            self._context.forget()
            self.seconds = None if self._store else 0.0
        begun = perf_counter()
        logits = self._context.decode(part.tokens, part.start, outputs=part.outputs)
        if self.seconds is not None:
            self.seconds += perf_counter() - begun
        return logits

    def keep_in(self, store: StoredReference) -> None:
        """Let a store look on from now on. Raises EngineError."""
        self._context.close()
        self._context = Context(self._model, self._options, store.on_tensor, store.wants)
        self._store = store

    def keep(self, part: Part, logits: Logits) -> None:
        """Put what was just decoded into the store, if there is one. Raises OutputError."""
        if self._store:
            self._store.add(part, logits)

    def close(self) -> None:
        """Free the context; the model may be another column's, too."""
        self._context.close()


class Models(Closing):
    """Files that are loaded once each, however many columns they have. Closing frees them all."""

    def __init__(self) -> None:
        self._models: dict[Path, Model] = {}

    def open(self, column: Column, options: ModelOptions | None, how: ContextOptions) -> Scorer:
        """Load a column. Raises EngineError, OutOfMemory; nothing of it is left then."""
        path = column.file.path
        known = self._models.get(path)
        model = known or Model.load(path, options)
        try:
            scorer = Scorer(column, model, how)
        except BaseException:
            if known is None:
                model.close()
            raise
        self._models[path] = model
        return scorer

    def close(self) -> None:
        """Free every model, and with them the scorers."""
        while self._models:
            _, model = self._models.popitem()
            model.close()
