"""Interrupted work is continued: the same bytes, whenever and in whatever way it stopped."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemcut import api
from gemcut.api import Target
from gemcut.errors import CheckpointError, OutputError
from gemcut.gguf_file import Value
from gemcut.journal import Journal, Record
from gemcut.quantize import writer
from gemcut.quantize.widths import splits
from tests.resuming import (
    RELEASE,
    TARGET,
    TILE,
    Stop,
    go_on,
    interrupt,
    journal,
    partial,
    records,
    small_steps,
    written,
)
from tests.shell import refused, run
from tests.test_reshape import plan_of

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def in_small_steps(monkeypatch):
    small_steps(monkeypatch)


@pytest.fixture(scope="module")
def model(checkpoint):
    return api.open_source(checkpoint)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The bytes that an uninterrupted run makes."""
    return written(model, tmp_path_factory.mktemp("whole") / "a.gguf")


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, SystemExit, OutputError])
def test_interrupted_work_is_kept_and_continued(error, model, whole, tmp_path):
    """Every tile that was finished in order is on record, and the user is told so."""
    path = tmp_path / "a.gguf"

    told, left = interrupt(model, path, 0.5, error)

    assert [".a.gguf.journal", ".a.gguf.partial"] == left
    (line,) = told
    assert (
        line.startswith("a.gguf: 5")
        and "% is kept: the same command continues, --restart begins anew" in line
    )
    assert ["a.gguf: continuing at 5"] == [line[:23] for line in go_on(model, path)]
    assert whole == path.read_bytes()


def test_a_padded_and_split_file_is_continued(model, tmp_path):
    """The same bytes as without the interruption, and progress in the source's weights."""
    target = Target(plan=plan_of(model, "q8_0", 32, split=list(splits(model))[:1]))
    api.quantize_model(model, tmp_path / "whole.gguf", target)
    (tmp_path / "b").mkdir()
    path, done = tmp_path / "b" / "a.gguf", []

    def progress(weights):
        done.append(weights)
        if sum(done) > 0.6 * model.weights:
            raise Stop

    with pytest.raises(Stop):
        api.quantize_model(model, path, target, progress=progress)
    done.clear()
    told = []
    api.quantize_model(model, path, target, progress=done.append, tell=told.append)

    assert ["a.gguf: continuing at 6"] == [line[:23] for line in told]
    assert model.weights == sum(done)
    assert (tmp_path / "whole.gguf").read_bytes() == path.read_bytes()


def test_killed_at_any_moment_the_work_is_continued(tmp_path):
    """See tests/killing.py, which can be asked for more."""
    command = [sys.executable, "-m", "tests.killing", str(tmp_path / "k"), "20", "7"]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )

    assert (0, "") == (done.returncode, done.stderr)
    counts = json.loads(done.stdout)
    assert counts["killed"] == 20 and counts["continued"] > 5 and not counts["damaged"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_the_same_command_continues(
    number, checkpoint, whole, tmp_path
):
    """One line says how much is kept; the next run says where it continues."""
    path = tmp_path / "a.gguf"
    arguments = ["quantize", str(checkpoint), "-o", str(path), "--type", "Q8_0", "-t", "1"]
    slow = f"""
import time
from gemcut.cli import main
from gemcut.quantize import tiles, writer
writer.TILE, writer.RELEASE, encode = {TILE}, {RELEASE}, tiles.encode
tiles.encode = lambda *a: (time.sleep(0.02), encode(*a))[1]
main({arguments!r})
"""
    child = subprocess.Popen([sys.executable, "-c", slow], cwd=ROOT, stderr=subprocess.PIPE)
    limit = time.monotonic() + 60
    while not (journal(path).exists() and len(records(path)) > 2):
        assert child.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    child.send_signal(number)
    talk = child.communicate()[1].decode()

    assert (
        child.returncode and "% is kept: the same command continues, --restart begins anew" in talk
    )
    assert "continuing at" in run(*arguments).stderr
    assert whole == path.read_bytes()


@pytest.mark.parametrize("every", [RELEASE, 1 << 40])
def test_all_that_is_finished_is_kept(every, model, whole, tmp_path, monkeypatch):
    """Even if it is an error of the progress bar, and long before the next record is due."""
    monkeypatch.setattr(writer, "RELEASE", every)

    told, _ = interrupt(model, tmp_path / "a.gguf", threads=3)

    assert re.fullmatch("a.gguf: 5[0-5]% is kept: .*", told[0])
    assert told[0][8:11] in go_on(model, tmp_path / "a.gguf")[0]
    assert whole == (tmp_path / "a.gguf").read_bytes()


def test_progress_counts_what_an_earlier_run_did(model, whole, tmp_path):
    """At once, and every weight exactly once."""
    path, done, all_ = tmp_path / "a.gguf", [], []
    api.quantize_model(model, path, TARGET, progress=all_.append)
    interrupt(model, path)

    go_on(model, path, progress=done.append)

    assert model.weights == sum(done) == sum(all_)
    assert done[0] >= RELEASE > max(all_) and len(done) < 0.7 * len(all_)


def test_nothing_on_record_leaves_nothing(model, tmp_path, monkeypatch):
    def fails(*_):
        raise CheckpointError("gone")

    monkeypatch.setattr("gemcut.quantize.tiles.encode", fails)
    told = []

    with pytest.raises(CheckpointError, match="gone"):
        api.quantize_model(model, tmp_path / "a.gguf", TARGET, tell=told.append)
    assert [] == told == list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(8))
def test_a_torn_journal_loses_only_its_end(seed, model, whole, tmp_path):
    """Cut off anywhere, and with garbage behind."""
    path, random = tmp_path / "a.gguf", np.random.default_rng(seed)
    interrupt(model, path)
    raw = journal(path).read_bytes()
    garbage = [b"", b"\0" * 50, b'{"tiles": 1, "digest": "x"}\n', b"[]\n"][seed % 4]
    journal(path).write_bytes(raw[: random.integers(len(raw) + 1)] + garbage)

    go_on(model, path)

    assert whole == path.read_bytes()


@pytest.mark.parametrize(
    ("place", "found"),
    [(0.0, "0%"), (0.2, "[12].%"), (0.4, "3.%"), (0.7, None), (1.0, None), ("header", None)],
)
def test_changed_bytes_are_found_and_written_again(place, found, model, whole, tmp_path):
    """A flipped bit in the header, in what is on record, or behind it, to the last of the file."""
    path = tmp_path / "a.gguf"
    interrupt(model, path, 0.5)
    (layout,) = writer.files(model, api.make_plan(model, TARGET), path).values()
    data = layout.data_offset
    at = 100 if place == "header" else data + int(place * (layout.size - 1 - data))
    with open(partial(path), "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 16]))

    (told,) = go_on(model, path)

    words = f"at {found}: what lies there is no longer what was written" if found else "at 5.%"
    assert re.fullmatch(f"a.gguf: continuing {words}", told)
    assert whole == path.read_bytes()


def test_what_lies_behind_the_last_record_does_not_matter(model, whole, tmp_path):
    """After a power cut it may be anything; the journal is only ever behind the disk."""
    path = tmp_path / "a.gguf"
    interrupt(model, path, 0.3)
    lines = journal(path).read_bytes().splitlines(keepends=True)
    journal(path).write_bytes(lines[0] + lines[1])
    size, kept = partial(path).stat().st_size, 1_000_000
    with open(partial(path), "r+b") as file:
        file.seek(kept)
        file.write(b"\xff" * (size - kept))

    go_on(model, path)

    assert whole == path.read_bytes()


def test_a_partial_file_of_another_length_is_continued(model, whole, tmp_path):
    for size in (len(whole) // 4, 2 * len(whole)):
        path = tmp_path / "a.gguf"
        interrupt(model, path)
        os.truncate(partial(path), size)

        go_on(model, path)

        assert whole == path.read_bytes()


def other_models(model):
    """The same tensors, of which something else is different."""
    names = [tensor.name for tensor in model.tensors]
    yield "source", replace(model, identity="another"), TARGET, None
    yield "metadata", replace(model, metadata={**model.metadata, "x": Value("u8", 1)}), TARGET, None
    yield "type", model, Target("Q5_0"), None
    ones = {n: np.ones((t.matrices, t.columns)) for n, t in zip(names, model.tensors, strict=True)}
    yield "importance", model, TARGET, {k: v.astype(np.float32) for k, v in ones.items()}


@pytest.mark.parametrize("what", ["source", "metadata", "type", "importance", "split"])
def test_unfinished_work_of_something_else_is_refused(what, model, tmp_path):
    """It is left alone; --restart removes it."""
    path = tmp_path / "a.gguf"
    _, left = interrupt(model, path)
    before = partial(path).read_bytes(), journal(path).read_bytes()
    others = {name: rest for name, *rest in other_models(model)} | {"split": [model, TARGET, None]}
    other, target, importance = others[what]
    options: Any = {"split_size": 2_000_000} if what == "split" else {}

    with pytest.raises(OutputError, match=r"a.gguf: unfinished work lies there.*--restart begins"):
        api.quantize_model(other, path, target, importance, **options)
    assert left == sorted(each.name for each in tmp_path.iterdir())
    assert before == (partial(path).read_bytes(), journal(path).read_bytes())

    assert [] == go_on(other, path, target, importance=importance, restart=True, **options)
    assert not any(each.name.startswith(".") for each in tmp_path.iterdir())


def test_the_command_line_restarts(checkpoint, model, whole, tmp_path):
    path = tmp_path / "a.gguf"
    interrupt(model, path)
    arguments = ["quantize", checkpoint, "-o", path, "--type", "Q5_0"]

    assert "--restart begins anew" in refused(run(*arguments))
    assert run(*arguments, "--restart").exit_code == 0
    assert [path] == list(tmp_path.iterdir())


def test_work_of_which_the_partial_file_is_gone_begins_anew(model, whole, tmp_path):
    """Nothing unfinished lies there then, whatever the journal says."""
    path = tmp_path / "a.gguf"
    interrupt(model, path)
    partial(path).unlink()

    assert [] == go_on(model, path)
    assert whole == path.read_bytes()


def test_two_processes_do_not_write_one_result(model, tmp_path):
    """The second is told at once, and the first is not disturbed."""
    path = tmp_path / "a.gguf"
    tried = []

    def progress(_):
        if not tried:
            tried.append(True)
            for restart in (False, True):
                with pytest.raises(OutputError, match="a.gguf: another process .* is writing it"):
                    api.quantize_model(model, path, TARGET, restart=restart)

    api.quantize_model(model, path, TARGET, progress=progress)

    assert [path] == list(tmp_path.iterdir()) and tried


def test_a_journal_that_was_just_removed_is_not_locked(tmp_path):
    """Who waits between opening and locking gets the file that now has the name."""
    path = tmp_path / ".a.journal"
    with Journal(path, path) as first:
        first.begin("key")
        first.append(Record(3, "d"))
        with pytest.raises(OutputError, match=rf"another process \({os.getpid()}\)"):
            Journal(path, path)
        first.remove()
    with Journal(path, path) as second:
        assert ("", []) == (second.key, second.records)
        second.begin("other")
    with Journal(path, path) as third:
        assert "other" == third.key


def test_tensors_are_written_as_their_data_lies_in_the_source(model, whole, tmp_path):
    """By rank; a rank is given back only when all below it is recorded; the file is the same."""
    path, count = tmp_path / "a.gguf", len(model.tensors)
    ranks = [(7 * i) % 5 for i in range(count)]
    ranked = [replace(t, rank=r) for t, r in zip(model.tensors, ranks, strict=True)]
    released: list[int] = []
    weights = [sum(t.weights for t in ranked if t.rank < rank) for rank in range(6)]

    def release(rank):
        lines = records(path)
        done = sum(t.weights for t in writer_tiles(other)[: lines[-1]["tiles"] if lines else 0])
        assert done >= weights[rank]
        released.append(rank)

    other = replace(model, tensors=tuple(ranked), release=release)
    interrupt(other, path, 0.7)
    assert sorted(released) == released and 0 < released[-1] < 5
    go_on(other, path)

    assert released[-1] == 5
    assert whole == path.read_bytes()


def writer_tiles(model):
    types: Any = dict.fromkeys(t.name for t in model.tensors)
    return list(writer._tiles(model, types, {}))
