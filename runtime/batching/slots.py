"""Sequences of a context, and the jobs that are being worked on in them."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from gemcut.llama import Context, Sampler, Span
from gemcut.runtime.batching.jobs import Deliver, Job
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
    """

    def __init__(self, job: Job, deliver: Deliver, sampler: Sampler, limit: int) -> None:
        self.job, self.deliver, self.sampler = job, deliver, sampler
        self.limit, self.number = limit, 0
        self.tokens = list(job.tokens)
        self.timing = Timing()
        self.cancelled, self.alone = False, True

    @property
    def drawn(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.job.tokens)

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
        kept = self.kept(work.tokens) if work.job.reuse else 0
        return 2 * kept - len(self.read)

    def take(self, work: Work) -> None:
        """Begin with some work: keep what its tokens share with the cache."""
        if not work.job.reuse:
            self.drop()
        kept = self.keep(work.tokens)
        if not work.timing.prompt_tokens:
            work.timing.cached = kept
        self.work, self._marked = work, False

    def span(self, count: int) -> Span:
        """The next tokens; logits are wanted where they reach the end."""
        assert self.work is not None
        begin = len(self.read)
        tokens = self.work.tokens[begin : begin + count]
        return Span(self.seq, begin, tokens, "last" if count == self.pending else "none")

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
