"""A disk without room for the result: what is written is kept, and nothing is left of nothing."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gemcut import api
from gemcut.errors import OutputError
from gemcut.journal import Journal
from tests.resuming import TARGET, go_on, interrupt, partial, records, small_steps, written
from tests.shell import refused, run

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


def test_a_disk_that_fills_up_keeps_what_is_written(model, whole, tmp_path, monkeypatch):
    """Where room could not be reserved; with room again, the work goes on."""
    path, write = tmp_path / "a.gguf", os.pwrite

    def cannot(fd, offset, length):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def full(fd, data, offset):
        if offset > len(whole) // 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    monkeypatch.setattr(os, "posix_fallocate", cannot, raising=False)
    told = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OutputError, match=r"a.gguf: No space left on device while writing"):
            api.quantize_model(model, path, TARGET, tell=told.append)

    assert "% is kept" in told[0] and "continuing" in go_on(model, path)[0]
    assert whole == path.read_bytes()


def test_a_journal_that_cannot_be_written_ends_the_work(model, whole, tmp_path, monkeypatch):
    """Nothing is finished that is not on record; what was on record before is continued."""
    path, append, told = tmp_path / "a.gguf", Journal.append, []

    def full(self, record):
        if len(self.records) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        with pytest.raises(OutputError, match="a.gguf: No space left on device"):
            api.quantize_model(model, path, TARGET, tell=told.append)

    assert 5 == len(records(path)) and "% is kept" in told[0]
    go_on(model, path)
    assert whole == path.read_bytes()


def test_a_disk_that_is_too_small_is_noticed_where_room_cannot_be_reserved(
    model, tmp_path, monkeypatch
):
    """The error says how much is needed and free; nothing is left, but what was kept stays."""
    path = tmp_path / "a.gguf"

    def cannot(fd, offset, length):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    usage = type("usage", (), {"free": 1_000_000})
    monkeypatch.setattr(os, "posix_fallocate", cannot, raising=False)
    monkeypatch.setattr("gemcut.gguf_writer.shutil.disk_usage", lambda _: usage)
    words = r"a.gguf: No space left on device; 0.01 GB are needed, 0.00 GB are free"

    with pytest.raises(OutputError, match=words):
        api.quantize_model(model, path, TARGET)
    assert [] == list(tmp_path.iterdir())

    monkeypatch.undo()
    small_steps(monkeypatch)
    _, left = interrupt(model, path)
    os.truncate(partial(path), 0)
    monkeypatch.setattr(os, "posix_fallocate", cannot, raising=False)
    monkeypatch.setattr("gemcut.gguf_writer.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=words):
        api.quantize_model(model, path, TARGET)
    assert left == sorted(each.name for each in tmp_path.iterdir())


@pytest.mark.parametrize("split", [None, 2_000_000])
def test_a_limit_on_file_sizes_leaves_nothing(split, checkpoint, tmp_path):
    """A real refusal of the system, in a process of its own."""
    limit = 4_000_000 if split is None else 1_000_000
    options = [] if split is None else ["--split-size", str(split)]
    command = [sys.executable, "-m", "gemcut", "quantize", str(checkpoint), "--type", "Q8_0"]

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    done = subprocess.run(
        [*command, "-o", str(tmp_path / "a.gguf"), *options],
        cwd=ROOT,
        preexec_fn=limited,
        capture_output=True,
        text=True,
        check=False,
    )

    assert 1 == done.returncode and "File too large" in done.stderr
    assert [] == list(tmp_path.iterdir())


def test_a_small_disk_is_an_error_and_leaves_nothing(checkpoint, tmp_path):
    """A real one, where one may be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=3M", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        line = refused(run("convert", checkpoint, "-o", tmp_path / "a.gguf")).splitlines()[-1]
        assert "No space left on device; 0.02 GB are needed, 0.00 GB are free" in line
        assert [] == list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
