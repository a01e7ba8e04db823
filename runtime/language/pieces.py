"""Tokens of an answer as what can be shown: whole characters, thoughts and calls told apart."""

import codecs
import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from gemcut.llama import Model
from gemcut.runtime.language.thoughts import (
    CHANNEL,
    END,
    HARMONY,
    NAME,
    START,
    TEXT,
    THOUGHT_MARKS,
    speaks_harmony,
    token_of,
)
from gemcut.runtime.language.tools import (
    CALL_MARKS,
    ToolCall,
    call_of,
    may_be_bare,
    read_bare_calls,
    read_calls,
)

_CLOSES = frozenset(THOUGHT_MARKS.values())
_CALL_CLOSES = frozenset(close for close in CALL_MARKS.values() if close)
_Mode = Literal["answer", "thought", "heading", "header", "call", "bare"]
_RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.-]+)")


@dataclass(frozen=True)
class Piece:
    """A bit of an answer."""

    text: str
    thought: bool = False  # thinking aloud: shown apart, and not part of the conversation
    call: ToolCall | None = None  # then there is no text


class Splitter:
    """Takes an answer's tokens one by one.

    Nothing is lost or shown twice, but for the marks themselves and the white space after them. A
    mark that the vocabulary has as a token counts as that token alone; otherwise its text does,
    that of a thought only where an answer begins.

    Args:
        thought: whether the prompt left a thought open.
        stops: texts that end the answer and are not part of it; they are not looked for in
            thoughts and calls.
        tools: whether to look for calls. What looks like one but is none is text.

    Attributes:
        stopped: the stop that was met, after which nothing more is taken.
    """

    def __init__(
        self, model: Model, thought: bool = False, stops: Iterable[str] = (), tools: bool = False
    ) -> None:
        self._model, self._tools = model, tools
        self._stops = [stop for stop in stops if stop]
        self.stopped: str | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._harmony = HARMONY if speaks_harmony(model) else ()
        calls = [*CALL_MARKS, *_CALL_CLOSES] if tools else []
        marks = [*THOUGHT_MARKS, *_CLOSES, *calls, *self._harmony]
        tokens = {mark: token_of(model, mark) for mark in marks}
        self._marks = {token: mark for mark, token in tokens.items() if token is not None}
        self._spelled = [mark for mark, token in tokens.items() if token is None]
        self._held = ""  # what may be the beginning of a mark or a stop
        self._begun = False  # whether the answer has text
        self._mode: _Mode = "answer"
        self._body = self._opening = self._recipient = ""  # of a call or a header
        self._trim = False  # white space after a mark
        if thought:
            self._enter("thought")

    def take(self, token: int) -> Iterator[Piece]:
        """What a token completes: nothing while a character or a mark is unfinished."""
        if self.stopped is not None:
            return
        mark = self._marks.get(token)
        if mark is None:
            whole = self._mode in ("call", "header")  # control tokens written out
            yield from self._feed(self._decoder.decode(self._model.piece(token, special=whole)))
            return
        yield from self._flush()
        if self.stopped is None and not (yield from self._meet(mark)):
            written = self._model.piece(token, special=self._mode == "call")
            yield from self._feed(written.decode(errors="replace"))

    def end(self) -> Iterator[Piece]:
        """What was held back: an unfinished character, the beginning of a stop, a call."""
        yield from self._flush()
        if self.stopped is None:
            yield from self._leave()

    def _flush(self) -> Iterator[Piece]:
        yield from self._feed(self._decoder.decode(b"", final=True))
        while self._held:
            held, self._held = self._held, ""
            yield from self._show(held)

    def _feed(self, text: str) -> Iterator[Piece]:
        """Show text as far as no mark or stop may begin in it."""
        self._held += text
        while self._held:
            if self._mode == "heading":
                _, line, self._held = self._held.partition("\n")
                if line:
                    self._enter("thought")
                continue
            if self._trim and self._mode in ("answer", "thought"):
                self._held = self._held.lstrip()
                self._trim = not self._held
            targets = self._targets()
            found = [(at, t) for t in targets if (at := self._held.find(t)) >= 0]
            at, target = min(found, default=(len(self._held) - _begun(self._held, targets), ""))
            before, self._held = self._held[:at], self._held[at:]
            was = self._mode
            yield from self._show(before)
            if target in THOUGHT_MARKS and self._begun:
                continue  # it does not begin the answer
            if target and self._mode == was:
                self._held = self._held[len(target) :]
                if target in self._stops and self._mode == "answer":
                    self.stopped, self._held = target, ""
                elif not (yield from self._meet(target)):
                    yield from self._show(target)
            elif self._mode == was:
                return

    def _targets(self) -> list[str]:
        """Texts that matter where the answer is."""
        spelled = self._spelled
        if self._mode == "thought":
            return [mark for mark in spelled if mark in _CLOSES]
        if self._mode == "call":
            ends = {self._opening, CALL_MARKS.get(self._opening)}
            return [mark for mark in spelled if mark in ends]
        if self._mode != "answer":
            return []
        opens = [mark for mark in spelled if mark in THOUGHT_MARKS and not self._begun]
        return [*self._stops, *opens, *(mark for mark in spelled if mark in CALL_MARKS)]

    def _show(self, text: str) -> Iterator[Piece]:
        """Add text to whatever it is part of."""
        if self._mode in ("call", "header", "bare"):
            self._body += text
            if self._mode == "bare" and not may_be_bare(self._body):
                self._mode, self._begun = "answer", True
                self._held = self._body + self._held
            return
        if not text or self._mode == "heading":
            return
        if self._mode == "answer" and not self._begun and text.strip():
            if self._tools and text.lstrip().startswith("{"):
                self._mode, self._body = "bare", ""
                yield from self._show(text)
                return
            self._begun = True
        yield Piece(text, self._mode == "thought")

    def _meet(self, mark: str) -> Generator[Piece, None, bool]:
        """Act on a mark; whether it meant anything here."""
        if mark in self._harmony:
            yield from self._meet_harmony(mark)
        elif self._mode == "call":
            if mark != CALL_MARKS.get(self._opening) and mark != self._opening:
                return False
            again = mark == self._opening  # of the next call; this one was not closed
            yield from self._leave("" if again else mark)
            if again:
                self._enter("call", mark)
        elif mark in CALL_MARKS:
            self._enter("call", mark)
        elif mark in THOUGHT_MARKS:
            self._enter("heading" if mark == CHANNEL else "thought")
        elif mark in _CLOSES:
            self._enter("answer")
        else:
            return False
        return True

    def _meet_harmony(self, mark: str) -> Iterator[Piece]:
        if self._mode == "call":
            yield from self._leave()
        if mark == TEXT and self._mode == "header":
            recipient = _RECIPIENT.search(self._body) if self._tools else None
            if recipient:
                self._enter("call")
                self._recipient = recipient[1]
            else:
                aloud = NAME not in self._body or "final" in self._body.rpartition(NAME)[2]
                self._enter("answer" if aloud else "thought")
        elif mark in (START, NAME):
            body = self._body if self._mode == "header" else ""
            self._enter("header")
            self._body = body + mark
        elif mark == END:
            self._enter("answer")

    def _enter(self, mode: _Mode, opening: str = "") -> None:
        self._mode, self._opening, self._body, self._recipient = mode, opening, "", ""
        self._trim = True

    def _leave(self, closing: str = "") -> Iterator[Piece]:
        """End a call: as one if it can be read, as text otherwise."""
        mode, body, opening = self._mode, self._body, self._opening
        if mode not in ("call", "bare"):
            return
        if self._recipient:
            call = call_of(self._recipient, body)
            calls = [call] if call else None
        else:
            calls = read_bare_calls(body) if mode == "bare" else read_calls(body)
        self._enter("answer")
        if calls is None:
            self._begun, self._trim = True, False
            yield Piece(opening + body + closing)
        for call in calls or ():
            yield Piece("", call=call)


def _begun(text: str, targets: Iterable[str]) -> int:
    """How much of the end of a text may be the beginning of one of the targets."""
    beginnings, longest = _beginnings(tuple(targets))
    sizes = range(min(longest, len(text)), 0, -1)
    return next((size for size in sizes if text[-size:] in beginnings), 0)


@lru_cache(maxsize=64)
def _beginnings(targets: tuple[str, ...]) -> tuple[frozenset[str], int]:
    """All beginnings of some texts but the whole texts, and how long the longest is."""
    found = frozenset(target[:size] for target in targets for size in range(1, len(target)))
    return found, max(map(len, found), default=0)
