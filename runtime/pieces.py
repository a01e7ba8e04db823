"""Tokens of an answer as text that can be shown: whole characters, thoughts told apart."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

from gemcut.llama import Model

# Tokens around a thought. Gemma's channel starts with a line that holds its name.
_OPEN, _CLOSE = (b"<|channel>", b"<think>"), (b"<channel|>", b"</think>")


@dataclass(frozen=True)
class Piece:
    """A bit of an answer."""

    text: str
    thought: bool  # thinking aloud: shown apart, and not part of the conversation


class Splitter:
    """Takes an answer's tokens one by one.

    Args:
        thought: whether the prompt left a thought open.
    """

    def __init__(self, model: Model, thought: bool = False) -> None:
        self._model, self._thought, self._heading = model, thought, False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, token: int) -> Iterator[Piece]:
        """What a token completes: nothing while a character is unfinished."""
        written = self._model.piece(token, special=True)
        if written in _OPEN or written in _CLOSE:
            yield from self.end()
            self._thought, self._heading = written in _OPEN, written == b"<|channel>"
        else:
            yield from self._show(self._decoder.decode(self._model.piece(token)))

    def end(self) -> Iterator[Piece]:
        """What is left of an unfinished character."""
        yield from self._show(self._decoder.decode(b"", final=True))

    def _show(self, text: str) -> Iterator[Piece]:
        if self._heading:
            _, line, text = text.partition("\n")
            self._heading = not line
        if text:
            yield Piece(text, self._thought)


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends inside a thought, as some templates make the model think."""
    return prompt.rstrip().endswith(tuple(mark.decode() for mark in _OPEN))
