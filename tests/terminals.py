"""A program in a terminal of its own: keys go in, and what a person would see comes out."""

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import pyte

_PATIENCE = 90  # seconds, for machines that are busy
# The terminal that the leader of a session opens first is the one that Ctrl-C reaches it through.
_LAUNCH = (
    "import os, sys; tty = os.open(sys.argv[1], os.O_RDWR); "
    "[os.dup2(tty, n) for n in (0, 1, 2)]; os.execv(sys.argv[2], sys.argv[2:])"
)


class _Screen(pyte.Screen):
    """Answers what programs ask a terminal."""

    keyboard = -1

    def write_process_input(self, data: str) -> None:
        os.write(self.keyboard, data.encode())


class Terminal:
    """Runs `gemcut` with these arguments. A context manager, which ends it."""

    def __init__(
        self,
        *arguments: object,
        folder: Path,
        environment: Mapping[str, str],
        size: tuple[int, int] = (40, 100),
    ) -> None:
        # Ours stays open, too: a terminal that nobody has open can no longer be read from.
        self._master, self._slave = os.openpty()
        self.screen = _Screen(size[1], size[0])
        self.screen.keyboard = self._master
        self._stream = pyte.ByteStream(self.screen)
        self.resize(*size)
        program = [sys.executable, "-m", "gemcut", *map(str, arguments)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, os.ttyname(self._slave), *program],
            env={**os.environ, **environment, "TERM": "xterm-256color"},
            cwd=folder,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(_PATIENCE)
        os.close(self._master)
        os.close(self._slave)

    @property
    def lines(self) -> list[str]:
        """The lines on the screen."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self.lines)

    def resize(self, rows: int, columns: int) -> None:
        """Make the window larger or smaller."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)
        if hasattr(self, "process"):
            os.kill(self.process.pid, signal.SIGWINCH)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def wait(self, *wanted: str, typed: str = "") -> str:
        """Wait until all of these are on the screen, and `typed` where one types; the screen."""
        end = time.monotonic() + _PATIENCE
        while True:
            text = self.text
            _, _, last = f"\n{text}".rpartition("\n> ")
            if all(each in text for each in wanted) and last.startswith(typed):
                return text
            alive = self.process.poll() is None and time.monotonic() < end
            assert self._read() or alive, f"wanted {wanted} {typed!r}, saw:\n{text}"

    def ready(self) -> str:
        """Wait until it asks for the next message; the screen."""
        return self.wait(typed="say something, or /help")

    def say(self, text: str) -> str:
        """Type a line, and wait until it is dealt with; the screen."""
        self.type(text)
        self.wait(typed=text.rstrip())
        self.type("\r")
        return self.ready()

    def exit_code(self) -> int:
        """Wait until the program has ended."""
        end = time.monotonic() + _PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it does not end:\n{self.text}"
            self._read()
        return self.process.wait()

    def _read(self) -> bool:
        """Take what the program writes in the next moment; whether there was anything."""
        readable, _, _ = select.select([self._master], [], [], 0.05)
        if readable:
            self._stream.feed(os.read(self._master, 1 << 16))
        return bool(readable)
