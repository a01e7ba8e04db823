"""One process at a time works on a result; a process that ended, however it did, holds nothing."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gemcut.artefact import write_text
from gemcut.errors import OutputError
from gemcut.lock import Lock, alone, alone_in
from gemcut.outputs import check_outputs, completed

HOLDS = """
import sys
from pathlib import Path
from gemcut.lock import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, which holds a lock on `tmp_path / "lock"`."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "lock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_the_second_is_told_who_is_the_first(holder, tmp_path):
    """Where Linux knows it; and what to do."""
    with pytest.raises(
        OutputError, match=r"a\.gguf: another process.* is writing it; wait"
    ) as told:
        Lock(tmp_path / "lock", tmp_path / "a.gguf")
    assert f"({holder.pid})" in str(told.value) or not Path("/proc/locks").exists()


def test_a_killed_process_holds_nothing(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Lock(tmp_path / "lock") as lock:
        lock.remove()
    assert [] == list(tmp_path.iterdir())


def test_who_waits_gets_the_file_that_now_has_the_name(holder, tmp_path):
    holder.stdin.close()
    with Lock(tmp_path / "lock", wait=True) as lock:
        assert os.path.samestat(os.fstat(lock.fd), (tmp_path / "lock").stat())


def test_a_file_system_that_cannot_lock_is_no_obstacle(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def cannot(fd, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", cannot)
    with alone(tmp_path / "a"), alone(tmp_path / "a"):
        pass
    assert [] == list(tmp_path.iterdir())


def test_nothing_is_left_of_a_lock(tmp_path):
    """Nor of a folder that was made for it."""
    with alone(tmp_path / "a"), alone_in(tmp_path / "b" / "c"), alone_in(tmp_path / "d"):
        (tmp_path / "d" / "result").touch()
        with pytest.raises(OutputError, match="a: another process"), alone(tmp_path / "a"):
            pass
        with pytest.raises(OutputError, match="d: another process"), alone_in(tmp_path / "d"):
            pass
    assert {"b", "d"} == {path.name for path in tmp_path.iterdir()}
    assert [] == list((tmp_path / "b").iterdir())


def test_a_folder_that_is_removed_meanwhile_is_no_error(tmp_path):
    with alone_in(tmp_path / "a"):
        (tmp_path / "a" / ".gemcut.lock").unlink()
        (tmp_path / "a").rmdir()


def test_two_at_one_artefact_do_not_mix(tmp_path):
    """The second is refused; the first one's file is whole, and what a killed one left is gone."""
    path = tmp_path / "a.json"
    (tmp_path / ".a.json.partial").write_text("a longer text that a killed process has left")
    with completed(path) as partial:
        partial.write_text("first")
        with pytest.raises(OutputError, match="another process"):
            write_text(path, "second")
    assert ["a.json"] == [each.name for each in tmp_path.iterdir()]
    assert "first" == path.read_text()


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "device", "folder"])
def test_what_is_no_file_is_not_replaced(kind, tmp_path):
    """Neither by what checks first, nor by what writes."""
    path = tmp_path / kind
    (tmp_path / "target").write_text("somebody's")
    match kind:
        case "link":
            path.symlink_to(tmp_path / "target")
        case "dangling":
            path.symlink_to(tmp_path / "nothing")
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/null")
        case "folder":
            path.mkdir()
    before = path.lstat()

    with pytest.raises(OutputError, match=re.escape(f"{path}") + ": is a (link|folder|device)"):
        check_outputs([path])
    with pytest.raises(OutputError, match=re.escape(f"{path}") + ": is a (link|folder|device)"):
        write_text(path, "text")
    assert before == path.lstat() and "somebody's" == (tmp_path / "target").read_text()
