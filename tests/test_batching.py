"""Many jobs in one context: each gets what it would get alone, whatever the others do."""

import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut.llama import Context
from gemcut.runtime.batching.jobs import Job
from gemcut.runtime.batching.scheduler import Scheduler
from tests import jobs
from tests.chats import open_chat
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


# --- one slot ---


def test_one_slot_answers_as_a_conversation_does(f32, model):
    """Token for token, and what was read before is read again by neither."""
    prompts = ["def add(a, b):", "class Point:", "def add(a, b):\n    return", "import os\n" * 30]
    with (
        open_chat(f32, context=ALONE, sampling=GREEDY) as chat,
        Context(model, ALONE) as context,
        Scheduler(context) as scheduler,
    ):
        for prompt in prompts:
            said = "".join(piece.text for piece in chat.generate(prompt, max_tokens=20))
            listener = Listener()
            tokens = [model.bos, *model.tokenize(prompt, add_special=False).tolist()]
            scheduler.submit(Job(tuple(tokens), GREEDY, 20), listener)
            ended = listener.wait()

            assert said == b"".join(map(model.piece, listener.tokens)).decode()
            assert (chat.finish, chat.timing.cached) == (ended.finish, ended.timing.cached)
            assert chat.timing.answer_tokens == ended.timing.answer_tokens


@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_one_slot_forgets_what_it_must(model, empty, text, data):
    """Without reuse an answer is the same bit for bit, whatever was read before."""
    with Context(model, ALONE) as context, Scheduler(context) as scheduler:
        for _ in range(3):
            begin, count = data.draw(st.integers(0, 200)), data.draw(st.integers(1, 200))
            tokens = tuple(text[begin : begin + count])
            job = Job(tokens, GREEDY, data.draw(st.integers(1, 12)), reuse=False)
            listener = Listener()
            scheduler.submit(job, listener)

            assert "length" == listener.wait().finish
            assert alone(empty, job)[0] == listener.tokens


# --- several ---


@pytest.mark.parametrize("unified", [True, False])
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_jobs_do_not_see_each_other(model, empty, text, noise, unified, data):
    """Random arrivals, lengths and cancellations: everyone gets what he would get alone."""
    count = data.draw(st.integers(4, 7))
    begins = [data.draw(st.integers(0, 150)) for _ in range(count)]
    lengths = [data.draw(st.integers(1, 180)) for _ in range(count)]
    limits = [data.draw(st.integers(1, 15)) for _ in range(count)]
    # After how many tokens the job is cancelled, and the next one comes; 0: at once.
    cancels = [data.draw(st.none() | st.integers(0, 12)) for _ in range(count)]
    arrivals = [data.draw(st.integers(0, 5)) for _ in range(count)]
    jobs = [
        Job(tuple(text[b : b + n]), GREEDY, limit)
        for b, n, limit in zip(begins, lengths, limits, strict=True)
    ]
    options = replace(SHARED, kv_unified=unified, n_ctx=SHARED.n_ctx if unified else 2048)
    with Context(model, options) as context, Scheduler(context) as scheduler:
        tickets, listeners = {}, [Listener() for _ in jobs]

        def submit(number):
            listener = listeners[number]
            come = threading.Event()

            def then(listener, news):
                if listener.ended or len(listener.drawn) >= arrivals[number]:
                    come.set()
                if len(listener.drawn) == cancels[number] and number in tickets:
                    tickets[number].cancel()

            listener._then = then
            tickets[number] = scheduler.submit(jobs[number], listener)
            if cancels[number] == 0:
                tickets[number].cancel()
            if arrivals[number]:
                assert come.wait(WAIT)

        for number in range(count):
            submit(number)
        for job, listener, cancelled in zip(jobs, listeners, cancels, strict=True):
            ended = listener.wait()
            wanted, gaps = alone(empty, job)
            assert same_but_for_noise(listener.tokens, wanted, gaps, noise)
            if cancelled is None or cancelled >= job.max_tokens:
                assert ended.finish in ("length", "stop")
                assert len(listener.tokens) == job.max_tokens or ended.finish == "stop"
            else:
                assert ended.finish in ("cancelled", "length", "stop")
        assert count == sum(scheduler.stats().finished.values())


def test_a_full_cache_makes_the_last_job_wait_again(model, empty, text, noise):
    """Nobody is cut short for another: who has to leave goes on later, where he was."""
    small = replace(SHARED, n_ctx=256, n_seq=3, n_outputs=3)
    jobs = [Job(tuple(text[i : i + 60]), GREEDY, 70) for i in range(4)]
    with Context(model, small) as context, Scheduler(context) as scheduler:
        listeners = [Listener() for _ in jobs]
        with scheduler._changed:  # all are there before the first batch
            for job, listener in zip(jobs, listeners, strict=True):
                scheduler.submit(job, listener)
        for job, listener in zip(jobs, listeners, strict=True):
            assert "length" == listener.wait().finish
            assert 70 == len(listener.tokens)
            wanted, gaps = alone(empty, job)
            assert same_but_for_noise(listener.tokens, wanted, gaps, noise)
            assert not listener.ended.alone
        stats = scheduler.stats()
    assert stats.preempted > 0
    assert stats.cells_used <= stats.cells == 256


def test_a_full_context_ends_an_answer(model, text):
    """As long as one sequence may be, and no longer."""
    with Context(model, replace(ALONE, n_ctx=256)) as context, Scheduler(context) as scheduler:
        listener = Listener()
        scheduler.submit(Job(tuple(text[:250]), GREEDY), listener)

        assert "length" == listener.wait().finish
        assert 6 == len(listener.tokens) == listener.ended.timing.answer_tokens + 1


def test_an_answer_goes_on_while_a_long_prompt_is_read(model, text):
    """Every batch has a token of it; the prompt takes what room there is beside."""
    seen = []
    with Context(model, SHARED) as context:
        run = context.run
        context.run = lambda spans: (seen.append([len(s.tokens) for s in spans]), run(spans))[1]
        with Scheduler(context) as scheduler:
            reader = Listener()

            def then(listener, news):
                if len(listener.drawn) == 1:
                    scheduler.submit(Job(tuple(text[:400]), GREEDY, 1), reader)

            writer = Listener(then)
            scheduler.submit(Job(tuple(text[:10]), GREEDY, 40), writer)
            writer.wait()
            reader.wait()

    beside = [counts for counts in seen[1:40] if len(counts) == 2]
    assert all(min(counts) == 1 and sum(counts) <= 64 for counts in beside)
    assert 400 == sum(max(counts) for counts in beside)


def test_a_conversation_finds_its_slot_again(shared, model, text):
    """Two that take turns are read once; a stranger takes an empty slot, then the oldest."""
    talks = {name: list(text[begin : begin + 60]) for name, begin in (("a", 0), ("b", 100))}
    for turn in range(3):
        for talk in talks.values():
            listener = Listener()
            shared.submit(Job(tuple(talk), GREEDY, 8), listener)
            cached = listener.wait().timing.cached
            assert cached == (len(talk) - 6 if turn else 0)
            talk += [*listener.tokens, *text[turn * 5 : turn * 5 + 5]]
    strangers = []
    for begin in (30, 230, 330):  # one more than there are empty slots
        listener = Listener()
        shared.submit(Job((model.eos, *text[begin : begin + 50]), GREEDY, 1), listener)
        strangers.append(listener.wait().timing.cached)
    assert [0, 0, 0] == strangers
    for talk, kept in ((talks["b"], True), (talks["a"], False)):
        listener = Listener()
        shared.submit(Job(tuple(talk), GREEDY, 1), listener)
        assert kept == (listener.wait().timing.cached > 60)


def test_a_turn_without_the_last_answer_is_not_read_from_the_start(model, empty, text, noise):
    """As templates leave thoughts out: the window has passed, a checkpoint has not."""
    first, second = Listener(), Listener()
    job = Job((*text[:200], *text[50:80]), GREEDY, 15)
    with Context(model, ALONE) as context, Scheduler(context) as scheduler:
        scheduler.submit(Job(tuple(text[:200]), GREEDY, 280), first)
        assert "length" == first.wait().finish
        assert not context.reaches(0, 200)
        scheduler.submit(job, second)

        assert 0 < second.wait().timing.cached < 200
    wanted, gaps = alone(empty, job)
    assert same_but_for_noise(second.tokens, wanted, gaps, noise)
