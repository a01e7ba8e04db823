"""Scoring in a process of its own: where llama.cpp meets what it cannot do, it ends the process.

The child gets the work on its stdin, tells what happens on a pipe, and puts scores into the cache's
file, from which the parent reads them: what was scored before a crash is not lost. The child ends
when its stdin does, so it does not outlive its parent, however that ends.
"""

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread
from typing import IO, Any, TypeVar

from gemcut.errors import EngineError
from gemcut.eval.scoring.cache import Cache
from gemcut.eval.scoring.passes import carry_out
from gemcut.eval.scoring.work import Report, Work

# Not multiprocessing's way, which imports the caller's main module once more.
_CHILD = "from gemcut.eval.scoring.worker import answer; answer()"
_SAID = 4096  # bytes of its last words that are looked at

_T = TypeVar("_T")


@dataclass(frozen=True)
class Crash:
    """How a child ended that did not do all of its work: as in "SIGABRT", and its last line."""

    how: str
    said: str

    def __str__(self) -> str:
        return f"{self.how}: {self.said}" if self.said else self.how


def run_isolated(work: Work, cache: Path, report: Report) -> Crash | None:
    """Carry out the work in another process.

    Returns:
        How it ended before its time, if it did.

    Raises what `carry_out` raises there, and what `report` raises here: the child is ended then.
    """
    return _run((_score, work, cache), report)


def apart(
    what: str,
    function: Callable[..., _T],
    *arguments: object,
    progress: Callable[[int, int], None] | None = None,
) -> _T:
    """What a function of a module makes of arguments, worked out in another process.

    Args:
        what: begins the message if the process ends.
        progress: it is given one, too, and what it tells is told.

    Raises what it raises; EngineError: the process ended, as it does where llama.cpp aborts.
    """
    found: list[_T] = []

    def hear(kind: str, *said: Any) -> None:
        if kind == "found":
            found.extend(said)
        elif progress:
            progress(*said)

    crash = _run((_returned, progress is not None, function, *arguments), lambda said: hear(*said))
    if crash or not found:
        raise EngineError(f"{what}: llama.cpp crashed ({crash})")
    return found[0]


def _run(task: tuple[object, ...], report: Callable[[Any], None]) -> Crash | None:
    """Let another process do a task: a function, and its arguments but for the last, `report`."""
    with TemporaryFile() as said, _child(said) as (process, events):
        with suppress(BrokenPipeError):  # it ended already: it will be seen below
            assert process.stdin
            pickle.dump(task, process.stdin)
            process.stdin.flush()
        for event in _received(events):
            if isinstance(event, Exception):
                raise event
            report(event)
        code = process.wait()
        return Crash(_how(code), _last_line(said)) if code else None


@contextmanager
def _child(said: IO[bytes]) -> Iterator[tuple["subprocess.Popen[bytes]", IO[bytes]]]:
    """A process that waits for its work, and the events that it will tell. It is ended at last."""
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(writing)],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            pass_fds=[writing],
            env={**os.environ, "PYTHONPATH": _search_path(), "GGML_NO_BACKTRACE": "1"},
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb") as events:
        try:
            yield process, events
        finally:
            process.kill()
            with suppress(BrokenPipeError):
                process.communicate()


def _received(events: IO[bytes]) -> Iterator[Any]:
    """What the child tells, until it ends."""
    with suppress(EOFError, pickle.UnpicklingError):  # cut short
        while True:
            yield pickle.load(events)


def _how(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _last_line(said: IO[bytes]) -> str:
    said.seek(max(0, said.seek(0, os.SEEK_END) - _SAID))
    lines = said.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _search_path() -> str:
    """Where this process finds its modules, so that the child finds the same ones."""
    return os.pathsep.join(folder or os.getcwd() for folder in sys.path)


# --- the child -----------------------------------------------------------------------------------


def answer() -> None:
    """Do the task that comes on stdin, and tell of it on the pipe whose number is the argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it as well, and ends this
    function, *arguments = pickle.load(sys.stdin.buffer)
    Thread(target=_end_with_parent, daemon=True).start()
    with open(int(sys.argv[1]), "wb", buffering=0) as events:

        def report(event: object) -> None:
            events.write(pickle.dumps(event))

        try:
            function(*arguments, report)
        except Exception as error:
            error.add_note(f"in the process that scores:\n{traceback.format_exc()}")
            report(error)


def _score(work: Work, path: Path, report: Report) -> None:
    with Cache(path) as cache:
        carry_out(work, cache, report)


def _returned(tells: bool, function: Callable[..., object], *rest: Any) -> None:
    *arguments, report = rest
    more = {"progress": lambda *done: report(("progress", *done))} if tells else {}
    report(("found", function(*arguments, **more)))


def _end_with_parent() -> None:
    """End this process when its stdin ends: in the middle of what it does, which may take long."""
    while os.read(0, 1):
        pass
    os._exit(1)
