"""A little of `make fuzz`: every reader of foreign bytes on a few damaged files, and its worker."""

import ctypes
import os
from random import Random

import pytest

from gemcut.errors import GemcutError
from tests.fuzz import files, kept, seeds, texts
from tests.fuzz.apart import forked
from tests.fuzz.mutate import mutated
from tests.fuzz.worker import _case

TARGETS = (*files.TARGETS, *kept.TARGETS, *texts.TARGETS)
CASES = 5


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeds, "FOLDER", tmp_path_factory.mktemp("seeds"))
        yield


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_is_damaged_is_read_or_refused(target, tmp_path):
    """What is good is read; of anything else nothing but a GemcutError comes."""
    run, good = target.open(tmp_path), list(target.seeds())
    for data in good[:2]:
        run(data)
    for number in range(CASES):
        random = Random(f"{target.name} {number}")
        data = mutated(random, random.choice(good), target.mutators)
        try:
            run(data)
        except GemcutError as error:
            assert str(error).isprintable()


def test_a_worker_tells_what_is_wrong(tmp_path):
    """Another error, a signal, and nothing; of a case in a process of its own."""
    said = os.open(tmp_path / "stderr", os.O_RDWR | os.O_CREAT)
    try:
        assert forked(lambda: None, 60, said) is None
        found = forked(lambda: _case(lambda data: 1 // len(data), b""), 60, said)
        assert found is not None and "ZeroDivisionError" == found["what"]
        crashed = forked(lambda: _case(lambda data: ctypes.string_at(0), b""), 60, said)
        assert crashed is not None and "SIGSEGV" == crashed["what"]
    finally:
        os.close(said)


def test_damage_is_repeatable():
    """A seed says all, so that a finding is found again."""
    for target in (files.TARGETS[0], *texts.TARGETS):
        data = [mutated(Random(7), target.seeds()[0], target.mutators) for _ in range(2)]
        assert data[0] == data[1]
