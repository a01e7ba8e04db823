"""The conversation at the terminal: messages and commands in, answers out."""

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from gemcut.cli.common import say
from gemcut.cli.terminal.commands import COMMANDS, command_of, following, run_command
from gemcut.cli.terminal.settings import Talk
from gemcut.cli.terminal.show import Screen, cut_off, speed
from gemcut.cli.terminal.source import Lines, Source
from gemcut.errors import ContextFull, GemcutError

if TYPE_CHECKING:
    from gemcut.runtime.language.pieces import Piece

_HELP = "/help lists commands, Ctrl-C stops an answer, Ctrl-D leaves"


class Session:
    """A conversation and where its messages come from.

    Args:
        name: the model's, for the status line.
        remember: what is typed, for the next time.

    Attributes:
        attached: texts that go before the next message.
        draft: what the next message begins with.
    """

    def __init__(self, talk: Talk, screen: Screen, name: str, remember: bool = True) -> None:
        self.talk, self._screen, self._name = talk, screen, name
        self.attached: list[str] = []
        self.draft = ""
        self._unread = 0  # how much of the conversation was said to be no longer read
        talk.chat.generator.on_read = screen.reading
        self.source: Source = self._typed(remember) if sys.stdin.isatty() else Lines()

    def run(self, first: str | None = None) -> None:
        """Answer what is said until there is no more. Nothing that goes wrong ends it.

        Args:
            first: said before anything is asked for.
        """
        if sys.stdin.isatty():
            self._screen.note(_HELP)
        if first is not None:
            self._safely(lambda: self.say(first))
        while self._safely(self._take):
            pass

    def say(self, text: str) -> None:
        """Say something, and show the answer.

        Raises:
            GemcutError: it cannot be answered; the conversation is as before.
        """
        pieces = self.talk.say("\n\n".join([*self.attached, text]))
        self.attached.clear()
        self.answer(pieces)

    def answer(self, pieces: Iterator["Piece"]) -> None:
        """Show an answer, and what there is to say about how it ended."""
        chat = self.talk.chat
        said = self._screen.show(pieces, chat.stop, self.talk.hide)
        self.talk.record(chat.timing)
        if chat.finish == "cancelled":
            say("[stopped]" if said else "[stopped before it began: the conversation is as before]")
        elif chat.finish == "length":
            say(f"[{cut_off(chat)}]")
        if chat.unread > self._unread:
            say(
                f"[the context was full: the model no longer reads the oldest {chat.unread} "
                "exchanges; /save keeps them]"
            )
        self._unread = chat.unread
        if self.talk.verbose:
            say(f"[{speed(chat.timing)}]")
        click.echo(err=True)

    def _safely(self, step: Callable[[], None]) -> bool:
        """Take a step; whether to go on. What goes wrong is said."""
        try:
            step()
        except EOFError:
            return False
        except KeyboardInterrupt:
            say("Ctrl-D or /exit leaves")
        except GemcutError as error:
            say(str(error))
            if isinstance(error, ContextFull):
                say("/set context-shift on, /undo and /reset make room; -c at the start gives more")
        return True

    def _take(self) -> None:
        draft, self.draft = self.draft, ""
        text = self.source.read(draft)
        if found := command_of(text):
            run_command(self, *found)
        elif text.strip():
            self.say(text[1:] if text.startswith("//") else text)

    def _typed(self, remember: bool) -> Source:
        from gemcut.cli.terminal.editor import Editor  # slow to import

        return Editor({n: c.help for n, c in COMMANDS.items()}, following, self._status, remember)

    def _status(self) -> str:
        chat = self.talk.chat
        parts = [self._name, f"{len(chat.generator.read)} of {chat.context.n_ctx_seq} tokens"]
        if chat.timing.decode:
            parts.append(f"{chat.timing.decode:.1f} tokens/s")
        if self.attached:
            parts.append(f"{len(self.attached)} files attached")
        return " \N{MIDDLE DOT} ".join(parts)
