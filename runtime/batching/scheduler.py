"""Continuous batching: many jobs share one context, and every batch takes all of them on.

One thread owns the context. Each job works in a slot, a sequence of the context; jobs beyond the
slots wait in turn. A batch has one token of each answer that is being written, and beside them a
part of the prompts that are being read: at most a ubatch, so that a new or cancelled job waits no
longer than that, and less while somebody waits for the next token.

With a unified cache the slots share its cells: one may take the whole context, and a batch of any
slots and lengths is computed at once, while separate streams are computed together only where they
are neighbours and in equal lengths. So a context for several jobs should be unified. Where the
cells run out, what ended jobs left is dropped first; then the job that came last waits again.

A prompt that is echoed needs logits for all its tokens. The context has few outputs, one a slot at
least: such prompts are read in pieces of what the other slots leave of them.
"""

from collections import Counter, deque
from collections.abc import Sequence
from threading import Condition, Thread, current_thread
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from gemcut.closing import Closing
from gemcut.errors import EngineError, GemcutError, QueueFull, UsageError
from gemcut.llama import Context, Sampler
from gemcut.runtime.batching.jobs import Deliver, Ended, Finish, Job, News, Stats, drawn
from gemcut.runtime.batching.slots import Shares, Slot, Work, within

Why = GemcutError | str | None


class Ticket:
    """A submitted job."""

    def __init__(self, work: Work, changed: Condition) -> None:
        self._work, self._changed = work, changed

    def cancel(self) -> None:
        """End the job with the next batch, or while it waits; `Ended` is still delivered."""
        with self._changed:
            self._work.cancelled = True
            self._changed.notify()


class Scheduler(Closing):
    """Works on many jobs at once. Close it before the context; nobody else may use that meanwhile.

    Args:
        queue: jobs that may wait when every slot is taken.
    """

    def __init__(self, context: Context, queue: int = 64) -> None:
        self._context, self._queue = context, queue
        self._slots = [Slot(context, seq) for seq in range(context.options.n_seq)]
        self._waiting: deque[Work] = deque()
        self._changed = Condition()  # guards _waiting and _closing
        self._closing = False
        self._finished: Counter[Finish] = Counter()
        self._totals: Counter[str] = Counter()
        self._number = self._ended = self._steps = 0
        self._busy_seconds = 0.0
        self._shares = Shares(min(context.options.n_ubatch, context.n_batch))
        self._thread = Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, job: Job, deliver: Deliver) -> Ticket:
        """Let a job wait for its turn. Takes as long as it takes to read its grammar; may be called
        in any thread.

        Args:
            deliver: called in the scheduler's thread with every token and, once, with the end.

        Raises:
            QueueFull: too many jobs wait already.
            ContextFull: the prompt leaves no room for an answer.
            EngineError: it is empty, not of the vocabulary, or the scheduler is closed.
        """
        limit = job.limit(self._context.n_ctx_seq, self._context.n_vocab)
        self._check_open()  # before a grammar is parsed in vain
        work = Work(job, deliver, Sampler(self._context.model, job.sampling), limit)
        try:
            with self._changed:
                self._check_open()
                work.number = self._number = self._number + 1
                self._waiting.append(work)
                self._changed.notify()
        except EngineError:
            work.sampler.close()
            raise
        return Ticket(work, self._changed)

    def stats(self) -> Stats:
        """Totals since the start, and the present state."""
        with self._changed:
            return Stats(
                prompt_tokens=self._totals["read"],
                cached_tokens=self._totals["cached"],
                answer_tokens=self._totals["drawn"],
                active=len(self._busy()),
                waiting=len(self._waiting),
                finished=dict(self._finished),
                preempted=self._totals["preempted"],
                busy_seconds=self._busy_seconds,
                cells_used=sum(len(slot.read) for slot in self._slots),
                cells=self._context.n_ctx,
            )

    def close(self) -> None:
        """Cancel every job and end the thread. Closing again does nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not current_thread():
            self._thread.join()

    def _check_open(self) -> None:
        if self._closing:
            raise EngineError("the scheduler is closed")
        there, most = self._number - self._ended, self._queue + len(self._slots)
        if there >= most:
            raise QueueFull(f"{there} jobs are there already, at most {most} may be: try later")

    def _busy(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.work]

    # --- in the thread ---

    def _work(self) -> None:
        going = True
        while going:
            try:
                going = self._next()
                if self._busy():
                    self._step()
            except Exception as error:  # the jobs end, the next ones get another chance
                self._fail(str(error) or type(error).__name__)

    def _fail(self, why: str) -> None:
        for slot in self._busy():
            self._end(slot, "error", why)
        try:
            for slot in self._slots:
                slot.drop()
        except GemcutError:  # the context is gone
            self._closing = True

    def _next(self) -> bool:
        """Wait for something to do, and let jobs into the slots; False at the end."""
        with self._changed:
            while not (self._closing or self._waiting or self._busy()):
                self._changed.wait()
            closing = self._closing
            gone = [work for work in self._waiting if closing or work.cancelled]
            for work in gone:
                self._waiting.remove(work)
        for work in gone:
            self._tell_end(work, "cancelled")
        for slot in self._busy():
            if slot.work and (closing or slot.work.cancelled):
                self._end(slot, "cancelled")
        if not closing:
            self._admit()
        return not closing

    def _admit(self) -> None:
        """Give waiting jobs, the first one first, the free slots that suit them best."""
        while True:
            free = [slot for slot in self._slots if not slot.work]
            with self._changed:
                if not free or not self._waiting or not self._fits(self._waiting[0]):
                    return
                work = self._waiting.popleft()
            try:
                gains = {slot: slot.gain(work) for slot in free}
                best = max(free, key=lambda slot: gains[slot])
                if gains[best] <= 0:
                    best = min(free, key=lambda slot: slot.used)
                best.take(work)
            except Exception as error:  # the context is gone, or no memory is left
                self._tell_end(work, "error", str(error) or type(error).__name__)
                raise
            self._totals["cached"] += len(best.read)

    def _fits(self, work: Work) -> bool:
        """Whether the cells are enough for a job beside those that are being worked on."""
        busy = sum(len(slot.work.tokens) for slot in self._slots if slot.work)
        return not busy or busy + len(work.tokens) < self._context.n_ctx

    def _step(self) -> None:
        """Compute one batch."""
        begun = perf_counter()
        self._steps += 1
        busy = self._busy()
        for slot in busy:
            if slot.work and len(busy) > 1:
                slot.work.alone = False
        shares = within(self._shares.counts(busy), self._context.n_outputs_max)
        counts = self._make_room(shares)
        for slot in counts:
            slot.mark_before(self._shares.ubatch)
        self._compute(counts, begun)
        seconds = perf_counter() - begun
        self._shares.adapt(counts, seconds)
        self._busy_seconds += seconds

    def _make_room(self, counts: dict[Slot, int]) -> dict[Slot, int]:
        """Free cells for the next tokens; without the slots whose jobs had to leave."""
        while sum(len(s.read) for s in self._slots) + sum(counts.values()) > self._context.n_ctx:
            idle = [slot for slot in self._slots if slot.read and not slot.work]
            if idle:
                min(idle, key=lambda slot: slot.used).drop()
                continue
            last = max(self._busy(), key=lambda slot: slot.work.number if slot.work else 0)
            with self._changed:
                self._waiting.appendleft(last.leave(self._steps))
            last.drop()
            counts.pop(last, None)
            self._totals["preempted"] += 1
        return counts

    def _compute(self, counts: dict[Slot, int], begun: float) -> None:
        """Run one batch and draw where it reached an end; if it fails, find the job at fault."""
        slots = sorted(counts, key=lambda slot: slot.seq)
        try:
            self._context.run([slot.span(counts[slot]) for slot in slots])
        except EngineError as error:
            if len(slots) > 1:
                for slot in slots:
                    self._compute({slot: counts[slot]}, begun)
                return
            self._end(slots[0], "error", str(error))
            slots[0].drop()
            return
        self._advance(slots, counts, begun)

    def _advance(self, slots: Sequence[Slot], counts: dict[Slot, int], begun: float) -> None:
        """Note what was read, and draw the next tokens."""
        row = 0
        for slot in slots:
            work, count = slot.work, counts[slot]
            assert work is not None
            whole, writing = slot.pending == count, slot.pending == 1 and work.drawn > 0
            last = row + slot.outputs(count) - whole
            slot.hear(count, self._context.logits[row:last])
            slot.read += work.tokens[len(slot.read) : len(slot.read) + count]
            token = self._sampled(work, last) if whole and work.more else None
            row = last + whole
            work.count(count, writing, perf_counter() - begun)
            self._totals["read"] += 0 if writing else count
            if whole:
                self._tell_next(slot, work, token, last)

    def _tell_next(self, slot: Slot, work: Work, token: int | GemcutError | None, row: int) -> None:
        """Tell what comes after all that was read: the echo, if it is wanted, and a token."""
        if work.job.echo and not work.drawn:
            self._tell(work, work.echo())
        if isinstance(token, GemcutError):
            self._end(slot, "error", token)
        elif token is None:
            self._end(slot, "length")
        else:
            self._take(slot, work, token, self._context.logits[row])

    def _sampled(self, work: Work, row: int) -> int | GemcutError:
        try:
            return work.sampler.sample(self._context, row)
        except GemcutError as error:  # of this job alone
            return error

    def _take(self, slot: Slot, work: Work, token: int, row: NDArray[np.float32]) -> None:
        """Deliver a token, and end what it ends."""
        ends = self._context.model.is_end(token)
        if not ends or work.job.echo:  # whoever counts an echo's tokens counts on a last one
            self._tell(work, drawn(token, row, work.job.logprobs))
        if ends:
            self._end(slot, "stop")
            return
        work.tokens.append(token)
        self._totals["drawn"] += 1
        if not work.more:
            self._end(slot, "length")

    def _end(self, slot: Slot, finish: Finish, error: Why = None) -> None:
        self._tell_end(slot.leave(self._steps), finish, error)

    def _tell_end(self, work: Work, finish: Finish, error: Why = None) -> None:
        work.sampler.close()
        self._finished[finish] += 1
        self._ended += 1
        why, asked = None if error is None else str(error), isinstance(error, UsageError)
        self._tell(work, Ended(finish, work.timing, why, asked, work.alone))

    def _tell(self, work: Work, news: News) -> None:
        try:
            work.deliver(news)
        except Exception:  # nobody listens any more
            work.cancelled = True
