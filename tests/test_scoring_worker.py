"""Scoring in a process of its own: same numbers, and what a crash, an interrupt or an end costs."""

import os
import pickle
import select
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from gemcut.errors import EngineError, OutputError, TextError
from gemcut.eval.scoring import scoring
from gemcut.eval.scoring.cache import Cache
from gemcut.eval.scoring.column import Column
from gemcut.eval.scoring.scoring import score_columns
from gemcut.eval.scoring.work import Began, Work
from gemcut.eval.scoring.worker import Crash, run_isolated
from gemcut.eval.texts.chunks import Chunk, half_scored
from tests import scored

N_CHUNKS = 3
# llama.cpp has no function that would write keys in this type, and calls it all the same.
DEADLY = "f64"
apart = partial(score_columns, threads=1, isolated=True)


@pytest.fixture(scope="module")
def files(f32, bf16, q4_k_m):
    return scored.columns(f32, bf16, q4_k_m)


@pytest.fixture(scope="module")
def chunks(f32):
    return scored.some_chunks(f32, N_CHUNKS)


@pytest.fixture(scope="module")
def here(files, chunks):
    return score_columns(files, chunks, threads=1)


@pytest.fixture
def children(monkeypatch):
    """The processes that are started from now on."""
    found, popen = [], subprocess.Popen

    def noted(*arguments, **options):
        found.append(popen(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    return found


def assert_gone(children):
    assert children and all(child.poll() is not None for child in children)


def test_numbers_are_those_of_this_process(here, files, chunks, children, capfd):
    steps = []

    found = apart(files, chunks, progress=lambda done, total: steps.append((done, total)))

    assert steps == [(done, 9) for done in range(1, 10)]
    assert (found.scores[files[0]].nll == here.scores[files[0]].nll).all()
    for column in files[1:]:
        scored.assert_same(found.scores[column], here.scores[column])
    assert all(found.prefill[column] > 0 for column in files) and not found.failures
    assert len(children) == 1
    assert_gone(children)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_started_for_what_is_known(files, chunks, tmp_path, children):
    with Cache(tmp_path / "scores") as cache:
        apart(files[:2], chunks, cache=cache)
        again = apart(files[:2], chunks, cache=cache)

    assert len(children) == 1 and again.scores.keys() == set(files[:2])


def test_a_crash_costs_the_column_that_was_read(here, files, chunks, children):
    """And the others go on in a new process."""
    deadly = files[0].with_cache(DEADLY, "f16")

    found = apart([files[0], files[1], deadly, files[2]], chunks)

    assert found.failures == {deadly: "llama.cpp crashed in chunk 1 (SIGSEGV)"}
    for column in files[1:]:
        scored.assert_same(found.scores[column], here.scores[column])
    assert len(children) == 2
    assert_gone(children)


def test_a_crash_of_the_reference_ends_it(files, chunks):
    with pytest.raises(EngineError, match=r"f32.gguf.*: llama.cpp crashed in chunk 1 \(SIGSEGV\)"):
        apart([replace(files[0], type_k=DEADLY), files[1]], chunks)


def test_an_abort_names_its_signal_and_chunk(files, chunks, children, monkeypatch):
    """Sent when some column begins its second chunk; on a busy machine it may hit the next one."""
    long = [Chunk(np.tile(chunk.tokens, 3), np.tile(chunk.outputs, 3)) for chunk in chunks[:2]]
    began = []

    def deadly(work, cache, report):
        def killing(event):
            report(event)
            if isinstance(event, Began) and len(children) == 1:
                began.append(event.column)
                if event.chunk == 1 and event.column == files[1]:
                    os.kill(children[0].pid, signal.SIGABRT)

        return run_isolated(work, cache, killing)

    monkeypatch.setattr(scoring, "run_isolated", deadly)
    caches = [file.with_cache("q8_0", "f16") for file in files]

    found = apart([*files, *caches], long)

    assert found.failures == {began[-1]: "llama.cpp crashed in chunk 2 (SIGABRT)"}
    assert len(found.scores) == 5 and len(children) == 2


def test_a_crash_says_the_last_words_and_between_columns_is_an_error(tmp_path):
    with Cache(tmp_path / "scores") as cache:
        watcher = scoring.Watcher(cache, lambda done, total: None, print)
        with pytest.raises(EngineError, match=r"ended \(SIGKILL: no memory\): run it again"):
            watcher.crashed(Crash("SIGKILL", "no memory"))


def test_errors_come_through_with_their_class(files, chunks, tmp_path, children):
    missing = Column(replace(files[0].file, path=tmp_path / "no.gguf"), files[0].role)
    with pytest.raises(EngineError, match="no.gguf: cannot be read: No such file"):
        apart([missing, files[1]], chunks)

    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"no database" * 500)
    with pytest.raises(TextError, match="damaged: the scores kept there") as caught:
        run_isolated(Work(tuple(files), chunks), damaged, print)
    assert "carry_out" not in str(caught.value) and "Traceback" in caught.value.__notes__[0]
    with pytest.raises(OutputError):
        run_isolated(Work(tuple(files), chunks), tmp_path, print)
    assert_gone(children)


def test_what_the_parent_raises_ends_the_child(files, chunks, children):
    """As an interrupt does."""

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apart(files, chunks, progress=interrupt)

    assert_gone(children)


_PARENT = """
import os, pickle, subprocess, sys
from gemcut.eval.scoring import worker
from gemcut.eval.scoring.work import Began

work, cache, dies = pickle.load(sys.stdin.buffer)

class Noted(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.noted = print(self.pid, flush=True)

def report(event):
    if isinstance(event, Began) and (event.column, event.chunk) == (work.columns[1], 0):
        print("reading", flush=True)
        if dies:
            os._exit(7)

worker.subprocess.Popen = Noted
try:
    worker.run_isolated(work, cache, report)
except KeyboardInterrupt:
    print("interrupted")
"""


@contextmanager
def family(work, cache, dies):
    """A process that isolates the work, and the one it started, as a file that ends with it.

    It leads a group, as the shell's jobs do, and is reading chunks.
    """
    command, pipe = [sys.executable, "-c", _PARENT], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, process_group=0) as process:
        try:
            pickle.dump((work, cache, dies), process.stdin)
            process.stdin.flush()
            child = os.pidfd_open(int(process.stdout.readline()))
            assert process.stdout.readline() == b"reading\n"
            yield process, child
        finally:
            process.kill()
    os.close(child)


@pytest.fixture
def long_work(files, chunks):
    """That takes minutes."""
    tokens = np.repeat(chunks[0].tokens[None], 5000, axis=0)
    tokens[:, 1:3] = np.stack(divmod(np.arange(5000), 1000), axis=1)
    return Work(tuple(files), half_scored(tokens))


def is_gone(child):
    """Whether a process ended, which is waited for."""
    return bool(select.select([child], [], [], 60)[0])


def test_an_interrupt_from_the_terminal_ends_both(long_work, tmp_path):
    with family(long_work, tmp_path / "scores", False) as (process, child):
        os.killpg(process.pid, signal.SIGINT)

        assert process.communicate(timeout=60)[0].endswith(b"interrupted\n")
        assert process.returncode == 0 and is_gone(child)


def test_the_child_does_not_outlive_its_parent(long_work, tmp_path):
    with family(long_work, tmp_path / "scores", True) as (process, child):
        assert process.wait(60) == 7 and is_gone(child)
