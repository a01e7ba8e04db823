"""Where messages come from, when nobody types them: the lines of a pipe or a file."""

import sys
from typing import Protocol

from gemcut.cli.terminal.asking import decode_text


class Source(Protocol):
    """Where the next message or command comes from."""

    multiline: bool  # Enter begins a new line, Alt-Enter sends

    def read(self, default: str = "") -> str:
        """The next one. Raises EOFError at the end, KeyboardInterrupt on Ctrl-C.

        Args:
            default: what it begins with, for somebody to change.
        """


class Lines:
    """One message a line."""

    multiline = False

    def read(self, default: str = "") -> str:
        """The next line. Raises TextError for one that is no text."""
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        return decode_text(line, "stdin").rstrip("\r\n")
