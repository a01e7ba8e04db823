"""Last words of a command that ends amid C: a mapped file is gone, or llama.cpp gives up.

Checkpoints and GGUFs are read through mappings, by gemcut and by llama.cpp. If such a file is cut
short meanwhile, or its disk fails, the system answers with SIGBUS in the middle of a computation,
which ends a process without a word. The commands end with a line that says what happened; whatever
was on record stays, as if they had been killed. So they do where llama.cpp asserts what does not
hold, as it may over a file that was made for that. Other crashes are left to the system: where
memory is in disorder no Python runs safely. Programs that use `gemcut.api` are left alone: their
ends are their own.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hid it
GIVES_UP = "llama.cpp ends the process:"  # before what it asserted
_GIVEN_UP = (
    "a file is damaged or was not made for it (`gemcut inspect --check FILE` tells), or this is a "
    "fault of llama.cpp"
)
_kept: list[object] = []  # what C calls must not be collected


def install() -> None:
    """From now on SIGBUS, and llama.cpp's giving up, end this process with a message and code 1."""
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end_of_bytes)
    with suppress(OSError, AttributeError):  # no such signal, or another C library
        number = signal.SIGBUS  # before the library: where there is none, None names no library
        # Python's own handlers run when an instruction is over, and this one never is.
        ctypes.CDLL(None).signal(ctypes.c_int(number), handler)
    _kept.append(handler)


def given_up(said: str) -> None:
    """What llama.cpp said before it ends the process; of a command this is the end."""
    _say(f"{GIVES_UP} {said}: {_GIVEN_UP}")
    if _kept:
        os._exit(1)


def _end_of_bytes(number: int) -> None:
    try:
        _say(_message())
    finally:
        os._exit(1)


def _say(message: str) -> None:
    cursor = _SHOW_CURSOR if sys.stderr and sys.stderr.isatty() else ""
    os.write(2, f"{cursor}\nError: {message}\n".encode(errors="replace"))


def _message() -> str:
    """What can be said: which mapped file is shorter than it was, or that it must be the disk."""
    if found := next(_cut_short(), None):
        why = f"{found}: was cut short while it was read; put it back"
    else:
        why = "a file could not be read on: its disk fails, or it was cut short; look after it"
    return f"{why}, then run the same command again"


def _cut_short() -> Iterator[str]:
    """The files that are mapped beyond their ends, as far as Linux tells."""
    page = os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
            span, _, offset, _, _, *name = line.split(maxsplit=5)
            if not (name and name[0].startswith("/")):
                continue
            begin, end = (int(each, 16) for each in span.split("-"))
            with suppress(OSError):  # it was removed, which is no harm
                pages = -(-os.stat(name[0]).st_size // page)
                if int(offset, 16) + end - begin > pages * page:
                    yield name[0]
