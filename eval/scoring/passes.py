"""All of the work in as few passes as memory allows, each over all chunks.

Where everything fits there is one pass, in lockstep. Otherwise the reference reads the chunks in
the first one, with as many others as fit beside it, and a store keeps what its logits follow from.
"""

from collections.abc import Sequence
from functools import partial
from operator import attrgetter

from gemcut.closing import Closing
from gemcut.errors import EngineError, OutOfMemory
from gemcut.eval.scoring.cache import Cache
from gemcut.eval.scoring.column import Column
from gemcut.eval.scoring.fitting import Fitting
from gemcut.eval.scoring.lockstep import Lockstep
from gemcut.eval.scoring.scorer import Models, Scorer, Source
from gemcut.eval.scoring.store import StoredReference
from gemcut.eval.scoring.work import LOADING, Began, Failed, Report, Told, Work, base_left, left
from gemcut.eval.texts.chunks import parts
from gemcut.score import Scores, score


def carry_out(work: Work, cache: Cache, report: Report) -> None:
    """Score what the cache lacks, and put it there.

    Raises:
        EngineError: the reference cannot be loaded or scored; another column is reported as failed.
        TextError, OutputError: the cache, the store or a .kld file cannot be used.
    """
    try:
        with Passes(work, cache, report) as passes:
            passes.run()
    finally:
        cache.commit()


class Passes(Closing):
    """What is still to be done; closing it removes the store.

    waiting: columns that were not loaded yet, the reference first.
    """

    def __init__(self, work: Work, cache: Cache, report: Report) -> None:
        self._work, self._cache, self._report = work, cache, report
        self._todo = left(work, cache)
        self.waiting = sorted(self._todo, key=lambda column: column != work.reference)
        self._store: StoredReference | None = None
        outputs = work.most_outputs
        self._fitting = Fitting(work.longest, outputs, work.options, work.threads, work.memory)

    def run(self) -> None:
        """Pass over the chunks until nothing waits. Raises as `carry_out` does."""
        while self.waiting:
            with Models() as models:
                scorers = self._load(models)
                if scorers:
                    self._lockstep(scorers, self._source(scorers[0])).run()
        self._score_base()

    def close(self) -> None:
        """Remove the store."""
        if self._store:
            self._store.close()

    def _lockstep(self, scorers: Sequence[Scorer], source: Source | None) -> Lockstep:
        return Lockstep(self._work, scorers, source, self._todo, self._cache, self._report)

    def _load(self, models: Models) -> list[Scorer]:
        """Load as many columns as fit; the others wait on."""
        stored = self._store is not None or self._work.base is not None
        room = self._fitting.together(self.waiting, stored)
        chosen, self.waiting = self.waiting[:room], self.waiting[room:]
        scorers: list[Scorer] = []
        for column in chosen:
            try:
                scorers.append(self._open(models, column, scorers))
            except EngineError as error:
                self._take(column, error, bool(scorers))
        return scorers

    def _open(self, models: Models, column: Column, others: Sequence[Scorer]) -> Scorer:
        self._report(Began(column, LOADING))
        work = self._work
        how = column.context(work.longest, work.most_outputs, work.threads)
        scorer = models.open(column, work.options.get(column.file.path), how)
        if others and scorer.n_vocab != others[0].n_vocab:
            scorer.close()
            raise EngineError(
                f"{column.name}: {scorer.n_vocab} tokens in its vocabulary, {others[0].n_vocab} in "
                f"that of {others[0].column.name}: compare files made from one checkpoint"
            )
        return scorer

    def _take(self, column: Column, error: EngineError, beside: bool) -> None:
        """A column was not loaded: it waits for more memory, if that was the reason, or failed."""
        if column == self._work.reference:
            raise EngineError(f"the reference cannot be scored: {error}") from error
        if beside and isinstance(error, OutOfMemory):
            self.waiting.insert(0, column)
        else:
            self._report(Failed(column, str(error)))

    def _source(self, first: Scorer) -> Source | None:
        """What the columns that are loaded are compared with; what the others will be, prepared."""
        work = self._work
        if first.column != work.reference:
            return self._store or work.base
        if self.waiting:
            chunks = [work.chunks[number] for number in sorted(self._todo[first.column])]
            tell = partial(_tell, self._report)
            self._store = StoredReference(first.column.file.path, chunks, work.threads, tell=tell)
            tell(
                f"{len(self.waiting)} of {len(self._todo)} columns do not fit into memory with the "
                "others: they come after these, over what the reference computed"
            )
            first.keep_in(self._store)
        return first

    def _score_base(self) -> None:
        """Score a .kld file's own numbers where no column needed them."""
        work = self._work
        for number in sorted(base_left(work, self._cache)):
            assert work.base
            chunk = work.chunks[number]
            found: list[Scores] = []
            for part in filter(attrgetter("n_scored"), parts(chunk)):
                logits = work.base.logits(part)
                found += score(part.targets, [], logits, work.threads, work.base.cutoff)
            self._cache.put(work.base_key, chunk, Scores.join(found))


def _tell(report: Report, text: str) -> None:
    report(Told(text))
