"""The scheduler's queue, its failures and its numbers."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.errors import ContextFull, EngineError, QueueFull
from gemcut.llama import Context
from gemcut.runtime.batching.jobs import Job
from gemcut.runtime.batching.scheduler import Scheduler
from gemcut.runtime.batching.slots import Shares, Slot
from gemcut.runtime.chat.reader import shared_prefix
from gemcut.score import log_softmax
from tests import jobs
from tests.jobs import (
    ALONE,
    GREEDY,
    SHARED,
    WAIT,
    Listener,
    alone,
    same_but_for_noise,
)

# Fixtures.
model, text, noise = jobs.model, jobs.text, jobs.noise
shared, empty = jobs.shared, jobs.empty


# --- the queue ---


def test_a_job_that_cannot_be_let_in_is_told_so(model, text, monkeypatch):
    """Whatever goes wrong there; the next one is answered."""

    def fail(slot, work):
        raise MemoryError

    with Context(model, ALONE) as context, Scheduler(context) as scheduler:
        failed, answered = Listener(), Listener()
        with monkeypatch.context() as patch:
            patch.setattr(Slot, "take", fail)
            scheduler.submit(Job(tuple(text[:9]), GREEDY, 2), failed)
            assert ("error", "MemoryError") == (failed.wait().finish, failed.wait().error)
        scheduler.submit(Job(tuple(text[:9]), GREEDY, 2), answered)
        assert answered.wait().finish == "length"


def test_who_comes_first_is_served_first_and_too_many_are_refused(model, text):
    """One slot, two places to wait; a cancelled job leaves its place at once."""
    order, hold = [], threading.Event()
    with Context(model, ALONE) as context, Scheduler(context, queue=2) as scheduler:

        def wait(listener, news):
            if len(listener.drawn) == 1:
                assert hold.wait(WAIT)

        def note(listener, news):
            if listener.ended:
                order.append(listeners.index(listener))

        listeners = [Listener(wait), *(Listener(note) for _ in range(2))]
        job = Job(tuple(text[:20]), GREEDY, 3)
        tickets = [scheduler.submit(job, listener) for listener in listeners]
        with pytest.raises(QueueFull, match="3 jobs are there already, at most 3"):
            scheduler.submit(job, Listener())
        tickets[1].cancel()
        tickets[1].cancel()
        hold.set()
        assert ["length", "cancelled", "length"] == [each.wait().finish for each in listeners]
        assert [1, 2] == order and [] == listeners[1].tokens


def test_a_job_is_cancelled_while_its_prompt_is_read(model, text):
    """With the next batch; what was read by then stays."""
    with Context(model, replace(ALONE, n_ubatch=8)) as context:
        run, tickets = context.run, []

        def cancel(spans):
            if spans[0].start >= 16:
                tickets[0].cancel()
            return run(spans)

        context.run = cancel
        with Scheduler(context) as scheduler:
            listener = Listener()
            with scheduler._changed:  # the ticket is there before the first batch
                tickets.append(scheduler.submit(Job(tuple(text[:200]), GREEDY), listener))
            assert "cancelled" == listener.wait().finish
            assert (24, []) == (listener.ended.timing.prompt_tokens, listener.tokens)
            again = Listener()
            scheduler.submit(Job(tuple(text[:100]), GREEDY, 1), again)
            assert 24 == again.wait().timing.cached


@pytest.mark.parametrize(
    ("job", "error", "why"),
    [
        (Job((), GREEDY), EngineError, "the prompt is empty"),
        (Job((5,) * 512, GREEDY), ContextFull, "has 512 tokens, the context 512"),
        (Job((5, -1), GREEDY), EngineError, "outside the vocabulary"),
        (Job((5, 1 << 40), GREEDY), EngineError, "outside the vocabulary"),
        (Job((5,), GREEDY, 0), EngineError, "max_tokens is 0"),
    ],
)
def test_an_impossible_job_is_refused_at_once(model, job, error, why):
    """Nothing is delivered for it."""
    with Context(model, ALONE) as context, Scheduler(context) as scheduler:
        with pytest.raises(error, match=why):
            scheduler.submit(job, pytest.fail)
        assert 0 == sum(scheduler.stats().finished.values())


# --- failures ---


def spoil(context, how):
    """Let `how(spans, logits)` change what a context computes."""
    run = context.run
    context.run = lambda spans: how(spans, lambda: run(spans))


@pytest.mark.parametrize("how", ["nan", "refused"])
def test_a_job_that_fails_ends_alone(model, empty, text, noise, how):
    """Logits that are not numbers, or a sequence that llama.cpp refuses: the others go on."""
    bad, calls = 1, []

    def poison(spans, go_on):
        calls.append(len(spans))
        at = [i for i, span in enumerate(spans) if span.seq == bad and span.start >= 70]
        if at and how == "refused":
            raise EngineError("llama.cpp did not decode: not this one")
        logits = go_on()
        if at:
            rows = [span.outputs != "none" for span in spans]
            logits[sum(rows[: at[0]])] = np.nan
        return logits

    jobs = [Job(tuple(text[i : i + 60]), GREEDY, 30) for i in range(3)]
    with Context(model, SHARED) as context:
        spoil(context, poison)
        with Scheduler(context) as scheduler:
            listeners = [Listener() for _ in jobs]
            with scheduler._changed:
                for job, listener in zip(jobs, listeners, strict=True):
                    scheduler.submit(job, listener)
            finishes = [listener.wait().finish for listener in listeners]
            failed = listeners[finishes.index("error")]
            assert ["error", "length", "length"] == sorted(finishes)
            assert ("numbers" if how == "nan" else "not this one") in failed.ended.error
            assert 10 <= len(failed.tokens) <= 12
            for job, listener in zip(jobs, listeners, strict=True):
                wanted, gaps = alone(empty, job)
                assert same_but_for_noise(listener.tokens, wanted, gaps, noise)
            last = Listener()
            scheduler.submit(jobs[0], last)
            assert last.wait().finish in ("length", "error")


def test_a_bug_ends_the_jobs_and_not_the_scheduler(model, text):
    """Whatever is raised where nobody expects it."""
    fail = True

    def poison(spans, go_on):
        if fail:
            raise ZeroDivisionError
        return go_on()

    with Context(model, ALONE) as context:
        spoil(context, poison)
        with Scheduler(context) as scheduler:
            first, second = Listener(), Listener()
            scheduler.submit(Job(tuple(text[:20]), GREEDY, 3), first)
            assert ("error", "ZeroDivisionError") == (first.wait().finish, first.ended.error)
            fail = False
            scheduler.submit(Job(tuple(text[:20]), GREEDY, 3), second)
            assert "length" == second.wait().finish


def test_who_does_not_listen_is_cancelled(shared, text):
    """What `deliver` raises is nobody else's trouble."""

    def refuse(listener, news):
        raise BrokenPipeError

    deaf, other = Listener(refuse), Listener()
    shared.submit(Job(tuple(text[:20]), GREEDY, 30), deaf)
    shared.submit(Job(tuple(text[:20]), GREEDY, 30), other)

    assert "length" == other.wait().finish
    assert 1 == len(deaf.tokens) and "cancelled" == deaf.ended.finish


def test_closing_cancels_everything(model, text):
    """Jobs at work and waiting; nothing is accepted afterwards; a gone context is survived."""
    with Context(model, ALONE) as context:
        scheduler, started = Scheduler(context), threading.Event()
        listeners = [Listener(lambda *_: started.set()) for _ in range(4)]
        for listener in listeners:
            scheduler.submit(Job(tuple(text[:20]), GREEDY, 400), listener)
        assert started.wait(WAIT)
        scheduler.close()
        scheduler.close()
        assert {"cancelled": 4} == scheduler.stats().finished
        assert all(listener.ended for listener in listeners)
        with pytest.raises(EngineError, match="the scheduler is closed"):
            scheduler.submit(Job((5,), GREEDY), Listener())
    late = Context(model, ALONE)
    with Scheduler(late) as scheduler:
        late.close()
        listener = Listener()
        scheduler.submit(Job((5,), GREEDY, 3), listener)
        assert "error" == listener.wait().finish


# --- numbers ---


def test_log_probabilities_are_the_models_own(shared, model, text):
    """Those of the raw logits; the likeliest first; a sampler's changes do not show."""
    biased = replace(GREEDY, logit_bias=((text[3], 50.0),))
    for sampling, top in ((GREEDY, 3), (biased, 1), (GREEDY, 1 << 20)):
        listener = Listener()
        shared.submit(Job(tuple(text[:40]), sampling, 1, logprobs=top), listener)
        listener.wait()
        with Context(model, ALONE) as context:
            wanted = log_softmax(context.decode(text[:40], outputs="last")[0])
        drawn = listener.drawn[0]
        assert min(top, model.n_vocab) == len(drawn.top)
        assert drawn.logprob == pytest.approx(wanted[drawn.token], abs=0.05)
        assert [token for token, _ in drawn.top[:1]] == [wanted.argmax()]
        assert all(value == pytest.approx(wanted[i], abs=0.05) for i, value in drawn.top)
        assert sorted(drawn.top, key=lambda item: -item[1]) == list(drawn.top)
    assert text[3] == drawn.token or sampling is GREEDY


def test_what_was_done_is_counted(shared, text):
    """Tokens read, cached and drawn, and how jobs ended."""
    for _ in range(2):
        listener = Listener()
        shared.submit(Job(tuple(text[:50]), GREEDY, 10), listener)
        listener.wait()
    stats = shared.stats()

    assert (50 + 1, 49, 20) == (stats.prompt_tokens, stats.cached_tokens, stats.answer_tokens)
    assert ({"length": 2}, 0, 0) == (stats.finished, stats.active, stats.waiting)
    assert stats.busy_seconds > 0
    assert 59 == stats.cells_used
    assert listener.ended.alone
    assert (1, 9) == (listener.ended.timing.prompt_tokens, listener.ended.timing.answer_tokens)


class Pending:
    """A slot with so many tokens to read."""

    def __init__(self, pending):
        self.pending = pending


@given(st.lists(st.integers(1, 900), min_size=1, max_size=12), st.integers(1, 512))
def test_a_batch_is_shared_fairly(pending, ubatch):
    """Every answer goes on, prompts fill a ubatch, and no prompt gets less than a longer one."""
    slots = [Pending(count) for count in pending]
    shares = Shares(ubatch)
    counts = shares.counts(slots)
    answers = [slot for slot in slots if slot.pending == 1]
    prompts = sorted((s for s in slots if s.pending > 1), key=lambda slot: slot.pending)

    assert all(counts[slot] == 1 for slot in answers)
    assert all(1 <= count <= slot.pending for slot, count in counts.items())
    assert sum(counts.values()) <= max(ubatch, len(answers) + 1)
    assert sum(counts.values()) == min(sum(pending), max(ubatch, len(answers) + bool(prompts)))
    given = [counts.get(slot, 0) for slot in prompts]
    done = [slot.pending == count for slot, count in zip(prompts, given, strict=True)]
    assert all(a >= b - 1 or d for a, b, d in zip(given, given[1:], done, strict=False))


@pytest.mark.parametrize(("per_token", "wanted"), [(1.0, 16), (0.01, 40), (0.0001, 511)])
def test_a_slow_machine_reads_less_beside_answers(per_token, wanted):
    """What takes half a second, but never nothing; a prompt alone fills the ubatch."""
    writing, reading = Pending(1), Pending(10_000)
    shares = Shares(512)
    for slots in ([reading], *[[writing, reading]] * 8):
        counts = shares.counts(slots)
        shares.adapt(counts, 0.1 + per_token * sum(counts.values()))

    assert wanted == pytest.approx(shares.counts([writing, reading])[reading], abs=3)
    assert 512 == shares.counts([reading])[reading]


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40))
def test_shared_prefixes_are_found(first, second):
    """Also beyond the blocks that are compared at once."""
    naive = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
    common = [2] * 2040
    assert naive == shared_prefix(first, second)
    assert 2040 + naive == shared_prefix(common + first, common + second)
