"""Columns that are in memory together read each chunk one after the other, and are scored at once.

So a divergence needs no file of logits: every context's logits stay where llama.cpp put them until
its next chunk. What is kept is a few numbers a token, in the cache.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gemcut.errors import EngineError
from gemcut.eval.files import CHANGED
from gemcut.eval.scoring.cache import Cache
from gemcut.eval.scoring.column import Column
from gemcut.eval.scoring.scorer import Scorer, Source
from gemcut.eval.scoring.store import StoredReference
from gemcut.eval.scoring.work import Began, Ended, Failed, Report, Work
from gemcut.eval.texts.chunks import Part, parts
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
        chunk, working = self.work.chunks[number], list(reading)
        found: dict[Scorer | None, list[Scores]] = {}
        for part in parts(chunk):
            base, working = self._read_part(number, part, working, found)
            if base is not None and part.n_scored:
                self._keep_base(number, part, base, found[None][-1])
        self._end(number, working)
        base_scores = found.pop(None, None)
        if base_scores and not isinstance(self.source, StoredReference):  # else they are there
            self.cache.put(self._base_key, chunk, Scores.join(base_scores))
        for scorer, scores in found.items():
            if scorer in working:
                self._keep(number, scorer, Scores.join(scores), working)
        return [scorer for scorer in reading if scorer not in working]

    def _read_part(
        self,
        number: int,
        part: Part,
        working: Sequence[Scorer],
        found: dict[Scorer | None, list[Scores]],
    ) -> tuple[Logits | None, list[Scorer]]:
        """Add what a part's tokens score to what is found, the base's under None.

        Returns the base's logits, and who read the part.
        """
        base = self._base(number, part)
        candidates = [scorer for scorer in working if scorer is not self.source]
        logits = {scorer: self._candidate(scorer, number, part) for scorer in candidates}
        whole = {scorer: rows for scorer, rows in logits.items() if rows is not None}
        if part.n_scored and (whole or base is not None):
            cutoff, threads = self.source.cutoff if self.source else None, self.work.threads
            scores = score(part.targets, [*whole.values()], base, threads, cutoff)
            owners = whole if base is None else [None, *whole]
            for owner, each in zip(owners, scores, strict=True):
                found.setdefault(owner, []).append(each)
        return base, [each for each in working if each is self.source or each in whole]

    def _base(self, number: int, part: Part) -> Logits | None:
        """What the others are compared with. Raises EngineError if that cannot be computed."""
        if isinstance(self.source, Scorer):
            return self._read(self.source, number, part)
        return self.source.logits(part) if self.source and part.n_scored else None

    def _candidate(self, scorer: Scorer, number: int, part: Part) -> Logits | None:
        """What it makes of a part; None if it fails, which is reported."""
        try:
            return self._read(scorer, number, part)
        except EngineError as error:
            self.report(Failed(scorer.column, str(error)))
            return None

    def _read(self, scorer: Scorer, number: int, part: Part) -> Logits:
        self.report(Began(scorer.column, number))
        return scorer.logits(part)

    def _end(self, number: int, working: Sequence[Scorer]) -> None:
        for scorer in working:
            self.report(Ended(scorer.column, number, scorer.seconds))

    @property
    def _base_key(self) -> str:
        reference = self.work.reference
        return self.work.key(reference) if reference else self.work.base_key

    def _keep_base(self, number: int, part: Part, logits: Logits, scores: Scores) -> None:
        """Keep what the reference's logits follow from, if others will need them.

        Raises EngineError if they make no sense.
        """
        if trouble := self._trouble(number, self.source, scores):
            reference, base = self.work.reference, self.work.base
            raise EngineError(f"{reference.name if reference else base and base.path}: {trouble}")
        if isinstance(self.source, Scorer):
            self.source.keep(part, logits)

    def _keep(self, number: int, scorer: Scorer, scores: Scores, working: list[Scorer]) -> None:
        """Keep the scores of a column, unless they make no sense: then it has failed."""
        if trouble := self._trouble(number, scorer, scores):
            self.report(Failed(scorer.column, trouble))
            working.remove(scorer)
        else:
            self.cache.put(self.work.key(scorer.column), self.work.chunks[number], scores)

    def _trouble(self, number: int, source: Source | None, scores: Scores) -> str:
        """Why scores out of some logits must not be kept, if so."""
        if isinstance(source, Scorer) and source.changed:
            return CHANGED
        count, where = len(scores.nll), f"chunk {number + 1} of {len(self.work.chunks)}"
        if bad := broken(scores):
            what = f"{bad} of {count} scored tokens have logits that are not finite"
        elif count > 1 and not np.ptp(scores.nll):  # NaN among weights may be rounded to zeros
            what = f"all {count} scored tokens are equally likely"
        else:
            return ""
        return f"{where}: {what}; the file is damaged, or a type or back-end is faulty"
