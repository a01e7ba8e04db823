"""What a person sees of an answer, as it comes: text on stdout, thoughts dimmed on stderr."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, TextIO

from gemcut.cli.common import say

if TYPE_CHECKING:
    from gemcut.runtime.chat.chat import Chat
    from gemcut.runtime.chat.timing import Timing
    from gemcut.runtime.language.pieces import Piece

_DIM, _PLAIN, _ERASE = "\x1b[2m", "\x1b[0m", "\r\x1b[K"
_HARMLESS = {c: None for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}


class Screen:
    """Shows answers, piece by piece; unless `quiet`, with a sign of life before they begin."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet, self._watched = quiet, sys.stderr.isatty() and not quiet
        self._shown = sys.stdout.isatty()
        for stream in (sys.stdout, sys.stderr):  # a terminal may not know every character
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="replace")
        self._hide, self._thinking, self._thoughts, self._sign = False, False, 0, ""

    def note(self, text: str) -> None:
        """Say something about an answer, unless quiet."""
        if not self._quiet:
            say(text)

    def show(self, pieces: Iterator["Piece"], stop: Callable[[], None], hide: bool = False) -> str:
        """Show an answer to its end, or until Ctrl-C, which `stop` is told of; its text.

        Args:
            hide: do not show thoughts.

        Errors of the answer are raised when what was said by then is on the screen.
        """
        said, self._hide, self._thinking, self._thoughts = "", hide, False, 0
        try:
            with interrupts(stop):
                for piece in pieces:
                    self._turn(piece.thought, bool(said))
                    if piece.thought:
                        self._think(piece.text)
                    else:
                        said += self._speak(piece.text, said)
        finally:
            self._turn(False, bool(said))
            self._erase()
            if said and not said.endswith("\n"):
                _write(sys.stdout, "\n")
        return said

    def loading(self, fraction: float) -> None:
        """Show how much of a model is loaded."""
        if fraction < 1:
            self._tell(f"loading {fraction:.0%}")
        else:
            self._erase()

    def reading(self, done: int, total: int) -> None:
        """Show how much of a long prompt is read."""
        if done < total:
            self._tell(f"reading {done} of {total} tokens")
        else:
            self._erase()

    def _turn(self, thought: bool, said: bool) -> None:
        """Between thoughts and answer: a mark of what comes, and an empty line after thoughts."""
        if thought == self._thinking:
            return
        self._thinking = thought
        if self._hide:
            self._erase()
        elif thought:
            _write(sys.stderr, ("\n" if said else "") + self._dim("thinking") + "\n")
        else:
            _write(sys.stderr, "\n\n")

    def _think(self, text: str) -> None:
        self._thoughts += 1
        if self._hide:
            self._tell(f"thinking \N{HORIZONTAL ELLIPSIS} {self._thoughts}")
        else:
            _write(sys.stderr, self._dim(harmless(text)))

    def _speak(self, text: str, said: str) -> str:
        """Write a piece of the answer; what was written."""
        self._erase()
        if self._shown:
            text = harmless(text) if said else harmless(text).lstrip("\n")
        _write(sys.stdout, text)
        return text

    def _dim(self, text: str) -> str:
        coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        return f"{_DIM}{text}{_PLAIN}" if coloured else text

    def _tell(self, sign: str) -> None:
        """A sign of life, in place of the last one."""
        if self._watched:
            self._sign = sign
            _write(sys.stderr, _ERASE + self._dim(sign))

    def _erase(self) -> None:
        if self._sign:
            self._sign = ""
            _write(sys.stderr, _ERASE)


@contextmanager
def interrupts(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls `stop`; nothing is torn out of the middle of its work."""
    before = signal.signal(signal.SIGINT, lambda number, frame: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def harmless(text: str) -> str:
    """The text without the characters that terminals obey, but for new lines and tabs."""
    return text.translate(_HARMLESS)


def cut_off(chat: "Chat") -> str:
    """Why an answer that was cut off was, and what helps."""
    if chat.generator.room(chat.generator.read) >= 2:
        return f"cut off after {chat.generator.drawn} tokens, as -n or /set max-tokens says"
    size = chat.context.n_ctx_seq
    return f"cut off, the context of {size} tokens is full: -c, /set context-shift on, /reset"


def speed(timing: "Timing") -> str:
    """How fast an answer was, in one line."""
    cached = f" ({timing.cached} before it were known)" if timing.cached else ""
    return (
        f"{timing.prompt_tokens} tokens read at {timing.prefill:.0f}/s{cached}, "
        f"{timing.answer_tokens} written at {timing.decode:.1f}/s"
    )


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()
