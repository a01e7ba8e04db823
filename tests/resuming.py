"""Interrupting what writes a file, in small steps, and going on with it."""

import json

import pytest

from gemcut import api
from gemcut.api import Target, cutting
from gemcut.quantize import writer

TILE, RELEASE = 1 << 15, 1 << 18
TARGET = Target("Q8_0")


def small_steps(monkeypatch):
    """Some 250 tiles and 30 records for the demo's checkpoint, in two threads.

    What many threads have begun is finished when the work is stopped, and counts.
    """
    monkeypatch.setattr(cutting, "default_threads", lambda: 2)
    monkeypatch.setattr(writer, "TILE", TILE)
    monkeypatch.setattr(writer, "RELEASE", RELEASE)


def written(model, path):
    """The bytes that an uninterrupted run makes."""
    api.quantize_model(model, path, TARGET)
    return path.read_bytes()


class Stop(Exception):
    """Ends the work from outside."""


def interrupt(model, path, after=0.5, error=Stop, **options):
    """Write until that share of the weights is done; what was told, and what is left."""
    told, done = [], 0

    def progress(weights):
        nonlocal done
        done += weights
        if done > after * model.weights:
            raise error

    with pytest.raises(error):
        api.quantize_model(model, path, TARGET, progress=progress, tell=told.append, **options)
    return told, sorted(each.name for each in path.parent.iterdir())


def journal(path):
    return path.with_name(f".{path.name}.journal")


def partial(path):
    return path.with_name(f".{path.name}.partial")


def records(path):
    return [json.loads(line) for line in journal(path).read_bytes().splitlines()[1:]]


def go_on(model, path, target=TARGET, **options):
    """Write it to its end; what was told."""
    told = []
    api.quantize_model(model, path, target, tell=told.append, **options)
    assert not journal(path).exists() and not partial(path).exists()
    return told
