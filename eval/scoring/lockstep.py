"""Columns that are in memory together read each chunk one after the other, and are scored at once.

So a divergence needs no file of logits: every context's logits stay where llama.cpp put them until
its next chunk. What is kept is a few numbers a token, in the cache.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gemcut.errors import EngineError
from gemcut.eval.scoring.cache import Cache
from gemcut.eval.scoring.column import Column
from gemcut.eval.scoring.scorer import Scorer, Source
from gemcut.eval.scoring.work import Began, Ended, Failed, Report, Work
from gemcut.score import Logits, Scores, broken, score


@dataclass(frozen=True)
class Lockstep:
    """Columns that are loaded, and what they are compared with.

    source: one of the scorers; or what the columns are compared with is stored; or None.
    todo: the chunks that each column has to read.
    """

    work: Work
    scorers: Sequence[Scorer]
    source: Source | None
    todo: Mapping[Column, Collection[int]]
    cache: Cache
    report: Report

    def run(self) -> None:
        """Score every chunk.

        Raises:
            EngineError: the reference cannot be scored; another column is reported as failed.
            TextError, OutputError: the cache, the store or a .kld file cannot be used.
        """
        working = list(self.scorers)
        for number in sorted(set().union(*map(self._numbers, working))):
            reading = [scorer for scorer in working if number in self._numbers(scorer)]
            for failed in self._score(number, reading):
                working.remove(failed)
                failed.close()

    def _numbers(self, scorer: Scorer) -> Collection[int]:
        return self.todo[scorer.column]

    def _score(self, number: int, reading: Sequence[Scorer]) -> list[Scorer]:
        """Let these read a chunk, and keep their scores; which of them failed."""
        base = self._base(number)
        candidates = [scorer for scorer in reading if scorer is not self.source]
        logits = {scorer: self._candidate(scorer, number) for scorer in candidates}
        whole = {scorer: rows for scorer, rows in logits.items() if rows is not None}
        chunk, cutoff = self.work.chunks[number], self.source.cutoff if self.source else None
        found = list(score(chunk.targets, [*whole.values()], base, self.work.threads, cutoff))
        if base is not None:
            self._keep_base(number, base, found.pop(0))
        for scorer, scores in zip(whole, found, strict=True):
            if trouble := self._trouble(number, scores):
                self.report(Failed(scorer.column, trouble))
                logits[scorer] = None
            else:
                self.cache.put(self.work.key(scorer.column), chunk, scores)
        return [scorer for scorer, rows in logits.items() if rows is None]

    def _base(self, number: int) -> Logits | None:
        """What the others are compared with. Raises EngineError if that cannot be computed."""
        if not isinstance(self.source, Scorer):
            return self.source.logits(self.work.chunks[number]) if self.source else None
        try:
            return self._read(self.source, number)
        except EngineError as error:
            where = f"{self.source.column.name}: chunk {number + 1}"
            raise EngineError(f"{where}: the reference cannot be scored: {error}") from error

    def _candidate(self, scorer: Scorer, number: int) -> Logits | None:
        """What it makes of a chunk; None if it fails, which is reported."""
        try:
            return self._read(scorer, number)
        except EngineError as error:
            self.report(Failed(scorer.column, str(error)))
            return None

    def _read(self, scorer: Scorer, number: int) -> Logits:
        self.report(Began(scorer.column, number))
        logits = scorer.logits(self.work.chunks[number])
        self.report(Ended(scorer.column, number, scorer.seconds))
        return logits

    def _keep_base(self, number: int, logits: Logits, scores: Scores) -> None:
        """Keep the reference's scores and, if others will need them, what its logits follow from.

        Raises EngineError if they are not finite.
        """
        chunk, reference, base = self.work.chunks[number], self.work.reference, self.work.base
        if trouble := self._trouble(number, scores):
            raise EngineError(f"{reference.name if reference else base and base.path}: {trouble}")
        if isinstance(self.source, Scorer):
            self.cache.put(self.work.key(self.source.column), chunk, scores)
            self.source.keep(chunk, logits)
        elif base:
            self.cache.put(self.work.base_key, chunk, scores)

    def _trouble(self, number: int, scores: Scores) -> str:
        if not (bad := broken(scores)):
            return ""
        return (
            f"chunk {number + 1} of {len(self.work.chunks)}: {bad} of {len(scores.nll)} scored "
            "tokens have logits that are not finite; the file is damaged, or a type or back-end is "
            "faulty"
        )
