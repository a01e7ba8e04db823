"""Jobs for a scheduler: who listens to them, what they get alone, and what noise is.

The fixtures at the end are for modules that take them by name.
"""

import threading
from dataclasses import replace

import numpy as np
import pytest

from gemcut.engine import ContextOptions, Sampling
from gemcut.llama import Context, Model, Span
from gemcut.runtime.batching.jobs import Drawn, Ended
from gemcut.runtime.batching.scheduler import Scheduler

GREEDY = Sampling(temperature=0)
ALONE = ContextOptions(n_ctx=512, n_batch=64, n_ubatch=64, threads=1, n_outputs=1)
SHARED = ContextOptions(
    n_ctx=1536, n_batch=64, n_ubatch=64, n_seq=4, threads=1, n_outputs=4, kv_unified=True
)
TEXT = "def add(first, second):\n    return first + second\n\n\nclass Point:\n    x = 1\n" * 16
COUNT = 150  # tokens to measure noise with
WAIT = 120  # seconds; only a hang takes that long


class Listener:
    """What a job was told, and the wait for its end."""

    def __init__(self, then=None):
        self.drawn, self.ended, self._done, self._then = [], None, threading.Event(), then

    def __call__(self, news):
        assert self.ended is None, "told something after the end"
        if isinstance(news, Drawn):
            self.drawn.append(news)
        else:
            self.ended = news
        if self._then:
            self._then(self, news)
        if self.ended:
            self._done.set()

    @property
    def tokens(self):
        return [drawn.token for drawn in self.drawn]

    def wait(self) -> Ended:
        assert self._done.wait(WAIT) and self.ended, "the job never ended"
        return self.ended


def alone(context, job):
    """A job in a context that is empty: its tokens, and how clear each decision was."""
    tokens, gaps, position = list(job.tokens), [], context.forget()
    limit = min(context.n_ctx_seq, len(tokens) + (job.max_tokens or context.n_ctx_seq))
    while len(tokens) < limit:
        part = tokens[position : position + context.options.n_ubatch]
        row = context.decode(part, start=position, outputs="last")[0]
        position += len(part)
        if position < len(tokens):
            continue
        second, best = np.sort(row)[-2:]
        gaps.append(best - second)
        tokens.append(int(row.argmax()))
        if context.model.is_end(tokens[-1]):
            break
    return tokens[len(job.tokens) :], gaps


def same_but_for_noise(found, wanted, gaps, noise):
    """Where two answers part, the two best tokens were too close to tell."""
    pairs = enumerate(zip(found, wanted, strict=False))
    parted = next((i for i, (a, b) in pairs if a != b), None)
    return parted is None or gaps[parted] <= noise


def measured_noise(model, text):
    """By how much the difference of two logits varies with the shape of the batch: measured."""
    with Context(model, replace(SHARED, n_outputs=None)) as context:
        readings = []
        for step in (64, 1, 5, 17, 64):
            parts = []
            for start in range(0, COUNT, step):
                part = text[start : min(start + step, COUNT)]
                spans = [Span(0, start, part, "all")]
                if step == 17:  # beside other texts
                    spans += [Span(seq, start, part[::-1], "none") for seq in (1, 3)]
                parts.append(context.run(spans).copy())
            readings.append(np.concatenate(parts))
            context.forget()
    apart = np.max([np.abs(reading - readings[0]).max(axis=1) for reading in readings], axis=0)
    found = apart.max()
    # Where two experts are too close to tell, it is more: 0.2 at one place with AVX2, else 0.01.
    assert 0 < found < 0.5 and np.quantile(apart, 0.95) < 0.1
    return 4 * found  # twice for two logits, and twice for what was not met here


@pytest.fixture(scope="module")
def model(f32):
    with Model.load(f32) as model:
        yield model


@pytest.fixture(scope="module")
def text(model):
    return [int(token) for token in model.tokenize(TEXT)]


@pytest.fixture
def shared(model):
    with Context(model, SHARED) as context, Scheduler(context) as scheduler:
        yield scheduler


@pytest.fixture(scope="module")
def empty(model):
    """A context to compute in what a job gets alone."""
    with Context(model, ALONE) as context:
        yield context


@pytest.fixture(scope="module")
def noise(model, text):
    return measured_noise(model, text)
