"""A command of gemcut's in a process of its own, forked from one that has loaded everything."""

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from gemcut import api
from gemcut.api import chain
from gemcut.quantize import collect, division, writer
from gemcut.quantize.forecast import Forecast
from gemcut.quantize.measure import Request
from gemcut.quantize.subject import Sampling

PATIENCE = 600.0  # seconds that a command may take on a busy machine
POLL = 0.003  # seconds

State = tuple[tuple[str, int, int], ...]  # of a folder: names, sizes, times of change


def load() -> None:
    """Import what the commands need, and make their steps small, before any of them is forked."""
    from gemcut.cli import COMMANDS

    for name in COMMANDS:
        importlib.import_module(f"gemcut.cli.{name.replace('-', '_')}")
    for name in ("eval.report.folder", "demo.walk"):
        importlib.import_module(f"gemcut.{name}")
    small = pytest.MonkeyPatch()
    small.setattr(writer, "TILE", 1 << 15)
    small.setattr(writer, "RELEASE", 1 << 19)
    small.setattr(collect, "_SAVE_EVERY", 2)
    small.setattr(division, "CHUNKS", (2, 2, 2))
    small.setattr(chain, "CHUNKS", (2, 2, 2))
    small.setattr(chain, "expected", lambda *_: Forecast(0.0, 1.0))  # it times every type
    small.setattr(chain, "Request", partial(Request, Sampling(8, 4), ("q4_0", "q8_0")))
    small.setattr(api, "Effort", partial(api.Effort, n_ctx=64))


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, negative for a signal, and what it said."""

    code: int
    out: str
    err: str
    seconds: float
    changes: int = 0  # that were seen in its folder


@dataclass(frozen=True)
class Process:
    """A command at work in a folder, with a cache of its own."""

    pid: int
    folder: Path
    said: Path  # the folder of its stdout and stderr
    began: float = field(default_factory=time.monotonic)

    def end(self, until: Callable[[int], bool] = lambda _: False, number: int = signal.SIGKILL):
        """Wait until it ends; sent a signal when `until`, told the changes seen, says so."""
        state, changes, sent = folder_state(self.folder), 0, False
        while not (status := os.waitpid(self.pid, os.WNOHANG))[0]:
            now = folder_state(self.folder)
            changes += now != state
            state = now
            if not sent and until(changes):
                os.kill(self.pid, number)
                sent = True
            if time.monotonic() - self.began > PATIENCE:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"it did not end: {(self.said / 'err').read_text()[-500:]}")
            time.sleep(POLL)
        out, err = ((self.said / name).read_text(errors="replace") for name in ("out", "err"))
        code = os.waitstatus_to_exitcode(status[1])
        return Ended(code, out, err, time.monotonic() - self.began, changes)


def start(
    arguments: list[str],
    folder: Path,
    said: Path,
    environment: Mapping[str, str],
    prepare: Callable[[], object] = lambda: None,
) -> Process:
    """Fork a child that runs a command in a folder.

    Args:
        said: a folder for what it says.
        prepare: called in the child, before anything else.
    """
    said.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = _child(arguments, folder, said, environment, prepare)
        finally:
            os._exit(code)
    return Process(pid, folder, said)


def _child(arguments, folder, said, environment, prepare) -> int:
    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, said / "out", 0o1101)):
        os.dup2(os.open(name, flags, 0o600), number)
    os.dup2(os.open(said / "err", 0o1101, 0o600), 2)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, closefd=False) for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv = ["gemcut", *arguments]
    prepare()
    from gemcut.__main__ import main

    try:
        main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(bool(left.code))
    except BaseException:
        traceback.print_exc()
        return 99
    finally:
        sys.stdout.flush()
    return 0


def folder_state(folder: Path) -> State:
    """What lies in a folder and below, by name, size and time of change."""
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "plots"]
        for name in names:
            try:
                stat = os.stat(os.path.join(where, name))
            except OSError:
                continue
            found.append((name, stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(found))


def contents(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """What lies under names that are seen, and the names that are hidden."""
    seen, hidden = {}, []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in Path(name).parts):
            hidden.append(name)
        elif path.is_file():
            seen[name] = path.read_bytes()
    return seen, hidden
