"""Sequences of a context, and the jobs that are being worked on in them."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gemcut.llama import Context, Sampler, Span
from gemcut.runtime.batching.jobs import Deliver, Drawn, Job, Read, drawn
from gemcut.runtime.chat.reader import Reader
from gemcut.runtime.chat.timing import Timing

_PATIENCE = 0.5  # seconds that a batch may take while somebody waits for the next token
_LEAST = 16  # tokens of prompts in such a batch, however slow the machine is


class Work:
    """A job on its way.

    Attributes:
        tokens: the prompt and what was drawn since.
        limit: how many tokens there may be.
        number: of the job; a smaller one came first.
        alone: whether no other job was worked on meanwhile.
        heard: tokens of the prompt with their log-probabilities, where it is echoed.
    """

    def __init__(self, job: Job, deliver: Deliver, sampler: Sampler, limit: int) -> None:
        self.job, self.deliver, self.sampler = job, deliver, sampler
        self.limit, self.number = limit, 0
        self.tokens = list(job.tokens)
        self.timing = Timing()
        self.cancelled, self.alone = False, True
        self.heard: list[Drawn] = [Drawn(job.tokens[0])] if job.echo else []

    @property
    def drawn(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.job.tokens)

    @property
    def more(self) -> bool:
        """Whether there may be another token."""
        return len(self.tokens) < self.limit

    @property
    def hearing(self) -> bool:
        """Whether tokens of the prompt are still to be told."""
        return self.job.echo and len(self.heard) < len(self.job.tokens)

    def echo(self) -> Read:
        """The prompt, as it is told."""
        return Read(tuple(self.heard))

    def count(self, tokens: int, writing: bool, seconds: float) -> None:
        """Take a batch into the timing: a token of the answer, or some of the prompt."""
        if writing:
            self.timing.answer_tokens += 1
            self.timing.answer_seconds += seconds
        else:
            self.timing.prompt_tokens += tokens
            self.timing.prompt_seconds += seconds


class Slot(Reader):
    """One sequence: what its cache holds, and the work that is done in it, if any.

    Attributes:
        used: when it last had work, as the scheduler counts.
    """

    def __init__(self, context: Context, seq: int) -> None:
        super().__init__(context, seq)
        self.seq, self.used = seq, 0
        self.work: Work | None = None
        self._marked = False  # whether a mark was made for this work

    @property
    def pending(self) -> int:
        """Tokens of the work that are to be read: of an answer the one drawn last."""
        return len(self.work.tokens) - len(self.read) if self.work else 0

    def gain(self, work: Work) -> int:
        """Tokens saved by doing some work here, less those that would be dropped for it."""
        kept = self.kept(work.tokens) if work.job.reuse and not work.job.echo else 0
        return 2 * kept - len(self.read)

    def take(self, work: Work) -> None:
        """Begin with some work: keep what its tokens share with the cache."""
        if not work.job.reuse or work.job.echo:
            self.drop()
        kept = self.keep(work.tokens)
        if not work.timing.prompt_tokens:
            work.timing.cached = kept
        self.work, self._marked = work, False

    def span(self, count: int) -> Span:
        """The next tokens; logits are wanted where they reach the end, and for an echo."""
        assert self.work is not None
        begin, foretold = len(self.read), self.foretold(count)
        tokens = self.work.tokens[begin : begin + count]
        if not foretold:
            return Span(self.seq, begin, tokens, "last" if count == self.pending else "none")
        mask = np.zeros(count, np.bool_)
        mask[foretold.start - begin : foretold.stop - begin] = True
        mask[-1] |= count == self.pending
        return Span(self.seq, begin, tokens, mask)

    def foretold(self, count: int) -> range:
        """Of the next tokens the positions whose logits tell the next token of a prompt."""
        work, begin = self.work, len(self.read)
        if work is None or not work.hearing:
            return range(0)
        last = min(begin + count, len(work.job.tokens) - 1)
        return range(max(begin, len(work.heard) - 1), last)

    def outputs(self, count: int) -> int:
        """How many of the next tokens get logits."""
        return len(self.foretold(count)) + (count == self.pending)

    def hear(self, count: int, rows: NDArray[np.float32]) -> None:
        """Take the logits [foretold, n_vocab] of the next tokens."""
        work = self.work
        assert work is not None
        for place, row in zip(self.foretold(count), rows, strict=True):
            work.heard.append(drawn(work.tokens[place + 1], row, work.job.logprobs))

    def mark_before(self, last: int) -> None:
        """Mark the position, once for a work, when `last` tokens at most are to be read."""
        if not self._marked and self.read and 1 < self.pending <= last:
            self._marked = True
            self.mark()

    def leave(self, now: int) -> Work:
        """Give the work back; what was read stays."""
        work, self.work, self.used = self.work, None, now
        assert work is not None
        return work


def within(counts: dict[Slot, int], outputs: int) -> dict[Slot, int]:
    """Fewer tokens of prompts that are echoed, so that there are outputs for all.

    Args:
        outputs: at least one for each slot.
    """
    hearing = [slot for slot in counts if slot.work and slot.work.hearing]
    left = outputs - sum(slot.outputs(counts[slot]) for slot in counts if slot not in hearing)
    for others, slot in zip(reversed(range(len(hearing))), hearing, strict=True):
        before = len(range(len(slot.read), slot.foretold(counts[slot]).start))
        counts[slot] = min(counts[slot], before + left // (others + 1))
        left -= slot.outputs(counts[slot])
    return counts


class Reading(Protocol):
    """What has tokens to read: one of an answer, more of a prompt."""

    @property
    def pending(self) -> int:
        """How many."""


Each = TypeVar("Each", bound=Reading)


class Shares:
    """How many tokens each slot reads in the next batch.

    Args:
        ubatch: tokens that are computed at once.
    """

    def __init__(self, ubatch: int) -> None:
        self.ubatch = ubatch
        self._beside = ubatch  # tokens of prompts in a batch with answers

    def counts(self, busy: Sequence[Each]) -> dict[Each, int]:
        """One token for every answer; for prompts a share each of what is left of a ubatch."""
        counts = {slot: 1 for slot in busy if slot.pending == 1}
        room = self.ubatch - len(counts)
        if counts:
            room = max(1, min(room, self._beside))
        reading = sorted((s for s in busy if s.pending > 1), key=lambda slot: slot.pending)
        for left, slot in zip(range(len(reading), 0, -1), reading, strict=True):
            # What a short prompt does not need of its share goes to the others.
            if count := min(slot.pending, -(-room // left)):
                counts[slot] = count
                room -= count
        return counts

    def adapt(self, counts: Mapping[Each, int], seconds: float) -> None:
        """Learn from a batch how much of prompts fits beside answers, which wait for its end."""
        read = sum(count for count in counts.values() if count > 1)
        if read >= min(_LEAST, self.ubatch):
            fits = int(read * _PATIENCE / max(seconds, 1e-6))
            self._beside = min(self.ubatch, max(_LEAST, fits))
