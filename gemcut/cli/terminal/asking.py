"""One prompt, one answer: put together from options, files and a pipe; printed or as JSON."""

import os
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import UnsupportedOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemcut.__main__ import INTERRUPTED
from gemcut.cli.common import print_json, say
from gemcut.cli.terminal.settings import Talk
from gemcut.cli.terminal.show import Screen, cut_off, interrupts, speed
from gemcut.errors import EngineError, TextError

if TYPE_CHECKING:
    from gemcut.runtime.chat.chat import Chat

_MOST_TEXT = 1 << 26  # bytes of a file that is read into a message


def question(prompt: str | None, files: Sequence[Path], piped: bool = True) -> str:
    """The prompt, then the files, then what is piped in, with an empty line between.

    Raises:
        TextError: a file or the pipe is no text.
    """
    parts = [prompt or "", *map(read_text, files), _piped() if piped else ""]
    parts = [part for part in parts if part.strip()]
    return parts[0] if len(parts) == 1 else "\n\n".join(part.rstrip("\n") for part in parts)


def read_text(path: Path) -> str:
    """A file that goes into a message. Raises TextError."""
    try:
        with open(path, "rb") as file:
            return decode_text(file.read(_MOST_TEXT + 1), str(path))
    except OSError as error:
        raise TextError(f"{path}: cannot be read: {error.strerror}") from error


def decode_text(data: bytes, where: str) -> str:
    """The text of some bytes, which come from `where`. Raises TextError."""
    if len(data) > _MOST_TEXT:
        raise TextError(f"{where}: has more than {_MOST_TEXT} bytes: take a part of it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{where}: byte {error.start} is no UTF-8: is it a text? iconv converts other encodings"
        ) from error


def _piped() -> str:
    """What a pipe or a file gives us as stdin; nothing from a terminal or /dev/null."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    with suppress(UnsupportedOperation, OSError):
        if stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode):
            return ""
    return decode_text(sys.stdin.buffer.read(_MOST_TEXT + 1), "stdin")


def ask(talk: Talk, text: str, screen: Screen) -> None:
    """Answer once: text on stdout. Ends the process with 130 if Ctrl-C ended the answer.

    Raises:
        EngineError: what was to be JSON was cut off.
    """
    chat = talk.chat
    chat.generator.on_read = screen.reading
    screen.show(talk.say(text), chat.stop, talk.hide)
    talk.record(chat.timing)
    if talk.verbose:
        say(f"[{speed(chat.timing)}]")
    if chat.finish == "length":
        screen.note(f"[{cut_off(chat)}]")
    _end(chat)


def ask_json(talk: Talk, text: str, name: str, extra: Mapping[str, Any]) -> None:
    """Answer once: one JSON document on stdout, with all there is to know about the answer.

    Args:
        name: the model's.
        extra: what goes with it.
    """
    chat = talk.chat
    with interrupts(chat.stop):
        pieces = list(talk.say(text))
    talk.record(chat.timing)
    said = ["".join(piece.text for piece in pieces if piece.thought is of) for of in (False, True)]
    print_json(
        {
            "model": name,
            "answer": said[0],
            "thoughts": said[1] or None,
            "finish": chat.finish,
            "usage": _usage(chat),
            "timings": _timings(chat),
            **extra,
        }
    )
    _end(chat)


def _usage(chat: "Chat") -> dict[str, int]:
    timing = chat.timing
    prompt, answer = timing.cached + timing.prompt_tokens, chat.generator.drawn
    return {
        "prompt_tokens": prompt,
        "cached_tokens": timing.cached,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }


def _timings(chat: "Chat") -> dict[str, float]:
    timing = chat.timing
    return {
        "prompt_seconds": timing.prompt_seconds,
        "prompt_per_second": timing.prefill,
        "answer_seconds": timing.answer_seconds,
        "answer_per_second": timing.decode,
    }


def _end(chat: "Chat") -> None:
    if chat.finish == "cancelled":
        click.get_current_context().exit(INTERRUPTED)
    if chat.finish == "length" and chat.sampling.grammar:
        raise EngineError("the answer was cut off, so it does not end as its grammar says: -n, -c")
