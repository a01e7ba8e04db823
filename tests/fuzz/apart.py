"""A case in a process of its own, forked for it: what ends that process does not end the others."""

import faulthandler
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

Finding = dict[str, Any] | None

_WAIT = 300.0  # seconds, for locks: who computes for long meets the limit of computing first


def forked(case: Callable[[], Finding], seconds: int, said: int) -> Finding:
    """What a case found, or what became of its process.

    Args:
        seconds: of computing that it may take.
        said: the descriptor of the file that standard error goes to, which is emptied.
    """
    os.ftruncate(said, 0)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _child(case, seconds, writing)
    os.close(writing)
    with open(reading, "rb") as answer:
        late = not select.select([answer], [], [], _WAIT)[0]
        if late:
            os.kill(child, signal.SIGKILL)
        data = answer.read()
    _, status = os.waitpid(child, 0)
    if data:
        found: Finding = json.loads(data)
        return found
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    what = "hangs" if late else signal.Signals(number).name if number else f"exit {status >> 8}"
    text = os.pread(said, 20_000, 0).decode("utf-8", "replace")
    return {"what": what, "text": text, "signature": None}


def _child(case: Callable[[], Finding], seconds: int, writing: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    faulthandler.enable()
    try:
        os.write(writing, json.dumps(case()).encode())
    finally:
        sys.stdout.flush()
        os._exit(0)
