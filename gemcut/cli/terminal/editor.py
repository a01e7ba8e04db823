"""Where messages come from: an editor with a history, several lines, and completion.

Enter sends; Alt-Enter, a backslash at the end of the line or an open \"\"\" begins a new line.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import ANSI, AnyFormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.styles import Style

_QUOTES = '"""'
_MOST_HISTORY = 1 << 20  # bytes
_STYLE = Style.from_dict(
    {"prompt": "ansigreen bold", "bottom-toolbar": "noreverse", "placeholder": "ansibrightblack"}
)
# Of what follows a command: the words that it may be, or None for the path of a file.
Words = Callable[[str], Sequence[str] | None]


class Editor:
    """The line at which a person types.

    Args:
        commands: all that may follow a slash, and what they are for.
        words: what may follow a command.
        status: the line below, asked for whenever it is drawn.
        remember: keep what is typed in a file of the user's.
    """

    def __init__(
        self,
        commands: Mapping[str, str],
        words: Words,
        status: Callable[[], str],
        remember: bool = True,
    ) -> None:
        self.multiline = False
        self._session: PromptSession[str] = PromptSession(
            history=_history() if remember else InMemoryHistory(),
            completer=_Commands(commands, words),
            complete_while_typing=True,
            key_bindings=self._keys(),
            multiline=True,  # what Enter does is decided here
            prompt_continuation=lambda width, number, wrapped: "  " if wrapped else ". ",
            bottom_toolbar=lambda: ANSI(f"\x1b[2m{status()}\x1b[0m"),
            enable_open_in_editor=True,
            style=_STYLE,
            output=create_output(always_prefer_tty=True),
        )

    def read(self, default: str = "") -> str:
        """What is typed, without the quotes around several lines."""
        message: AnyFormattedText = [("class:prompt", "> ")]
        return unquoted(self._session.prompt(message, default=default, placeholder=self._hint))

    def _hint(self) -> AnyFormattedText:
        """What stands on an empty line as long as it is waited for."""
        waiting = not self._session.app.is_done
        return [("class:placeholder", "say something, or /help")] if waiting else ""

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            self._enter(event, alone=True)

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            self._enter(event, alone=False)

        @keys.add("c-j")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        return keys

    def _enter(self, event: KeyPressEvent, alone: bool) -> None:
        """Send what is typed, or begin a new line in it."""
        buffer = event.current_buffer
        if alone and buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        elif self._goes_on(buffer.text, alone):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    def _goes_on(self, text: str, alone: bool) -> bool:
        """Whether Enter, alone or with Alt, begins a new line."""
        if text.startswith("/") and "\n" not in text:
            return not alone
        return alone == self.multiline or unfinished(text)


class _Commands(Completer):
    """Completes commands and what follows them; everything else is the user's own."""

    def __init__(self, commands: Mapping[str, str], words: Words) -> None:
        self._commands, self._words = commands, words
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """What the text before the cursor may go on with."""
        typed = document.text_before_cursor
        command, gap, rest = typed.partition(" ")
        if not typed.startswith("/") or "\n" in typed:
            return
        words = self._words(command[1:]) if gap else tuple(self._commands)
        if words is None:
            path = Document(rest.lstrip())
            yield from self._paths.get_completions(path, complete_event)
            return
        begun = rest if gap else command[1:]
        for word in words:
            if word.startswith(begun):
                meaning = None if gap else self._commands[word]
                yield Completion(word, -len(begun), display_meta=meaning)


def unfinished(text: str) -> bool:
    """Whether a text begins with three quotes that are not closed."""
    return text.lstrip().startswith(_QUOTES) and not (
        len(text.strip()) >= 2 * len(_QUOTES) and text.rstrip().endswith(_QUOTES)
    )


def unquoted(text: str) -> str:
    """The text without the three quotes on both sides, if it has them."""
    bare = text.strip()
    if bare.startswith(_QUOTES) and not unfinished(text):
        return bare[len(_QUOTES) : -len(_QUOTES)].strip("\n")
    return text


def state_folder() -> Path:
    """Where a user's programs keep what they may not lose, and nobody else shall read."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "gemcut"


class _History(FileHistory):
    """What was typed in earlier sessions, too."""

    def store_string(self, string: str) -> None:
        """Keep it, if that can be done: a full disk ends no conversation."""
        with suppress(OSError):
            super().store_string(string)


def _history() -> History:
    """The user's own history; of this session only where none can be kept."""
    path = state_folder() / "history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "rb+") as file:
            os.fchmod(file.fileno(), 0o600)
            _shorten(file)
    except OSError:
        return InMemoryHistory()
    return _History(path)


def _shorten(file: BinaryIO) -> None:
    """Drop the oldest entries of a long history; each begins with a line "# date"."""
    if file.seek(0, os.SEEK_END) <= _MOST_HISTORY:
        return
    file.seek(-_MOST_HISTORY // 2, os.SEEK_END)
    _, mark, latest = file.read().partition(b"\n# ")
    file.seek(0)
    file.write(mark + latest)
    file.truncate()
