"""What may follow a slash: one table, which /help prints and Tab completes."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from gemcut.cli.common import console, say
from gemcut.cli.terminal.asking import read_text
from gemcut.cli.terminal.settings import SETTINGS, change, find, restore, values, written
from gemcut.cli.terminal.show import speed
from gemcut.errors import GemcutError, OutputError, TextError, UsageError, printable
from gemcut.sizes import format_size

if TYPE_CHECKING:
    from gemcut.cli.terminal.session import Session

_KEYS = {
    "Enter": "send",
    "Alt-Enter": "a new line; so does \\ at the end of a line",
    '""" ... """': "a message of several lines",
    "Up, Ctrl-R": "what was typed before",
    "Ctrl-X Ctrl-E": "write in $EDITOR",
    "Ctrl-C": "stop an answer; clear the line",
    "Ctrl-D": "leave",
}


@dataclass(frozen=True)
class Command:
    """One of them: what follows it, what it is for, what it does."""

    arguments: str
    help: str
    run: Callable[["Session", str], None]


def command_of(text: str) -> tuple[str, str] | None:
    """The command that a text is, and what follows it; None: it is a message.

    "/usr/bin is a folder" is none, and "//help" is the message "/help".
    """
    match = re.fullmatch(r"/([\w?-]+)(?:\s+(.*))?", text.strip(), re.DOTALL)
    return (match[1], (match[2] or "").strip()) if match else None


def run_command(session: "Session", name: str, rest: str) -> None:
    """Do it.

    Raises:
        EOFError: it was to leave.
        UsageError: there is no such command, or not with these arguments.
        GemcutError: what the command raises; the conversation is as before.
    """
    name = _ALIASES.get(name.lower(), name.lower())
    if name not in COMMANDS:
        near = get_close_matches(name, [*COMMANDS, *_ALIASES], 1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists what there is"
        raise UsageError(f"there is no command /{name:.40}: {hint}")
    command = COMMANDS[name]
    if rest and not command.arguments:
        raise UsageError(f"/{name} stands alone; //{name} ... says it to the model")
    if not rest and command.arguments and not command.arguments.startswith("["):
        raise UsageError(f"/{name} {command.arguments}: {command.help}")
    command.run(session, rest)


def following(name: str) -> Sequence[str] | None:
    """The words that may follow a command; None: a path."""
    name = _ALIASES.get(name, name)
    arguments = COMMANDS[name].arguments if name in COMMANDS else ""
    if "FILE" in arguments:
        return None
    if "on|off" in arguments:
        return ("on", "off")
    return tuple(SETTINGS) if name == "set" else ()


def _help(session: "Session", rest: str) -> None:
    grid = Table.grid(padding=(0, 2))
    for name, command in COMMANDS.items():
        grid.add_row(f"/{name} {command.arguments}", command.help)
    grid.add_row()
    for key, does in _KEYS.items():
        grid.add_row(key, does)
    console().print(grid)


def _exit(session: "Session", rest: str) -> None:
    raise EOFError


def _reset(session: "Session", rest: str) -> None:
    session.talk.chat.reset()
    session.attached.clear()
    say("a new conversation")


def _undo(session: "Session", rest: str) -> None:
    dropped = session.talk.chat.undo()
    say(f"dropped: {printable(dropped):.60}")


def _edit(session: "Session", rest: str) -> None:
    session.draft = session.talk.chat.undo()


def _retry(session: "Session", rest: str) -> None:
    session.answer(session.talk.chat.retry(session.talk.max_tokens))


def _system(session: "Session", rest: str) -> None:
    chat = session.talk.chat
    if rest:
        chat.system = None if rest.lower() == "none" else rest
    say(f"system: {chat.system}" if chat.system else "there is no system message")


def _set(session: "Session", rest: str) -> None:
    name, _, text = rest.replace("=", " ", 1).partition(" ") if rest else ("", "", "")
    if text.strip():
        change(session.talk, name, text)
        say(f"{name} is {written(find(name).get(session.talk))}")
        return
    if name:
        find(name)
    grid = Table.grid(padding=(0, 2))
    for known, value in values(session.talk).items():
        if not name or SETTINGS[known] is find(name):
            grid.add_row(known, written(value), SETTINGS[known].help)
    console().print(grid)


def _switch(name: str) -> Callable[["Session", str], None]:
    """A command that is short for /set NAME on|off; without a word it turns it over."""

    def run(session: "Session", rest: str) -> None:
        now = find(name).get(session.talk)
        change(session.talk, name, rest or written(not now))
        say(f"{name} is {written(find(name).get(session.talk))}")

    return run


def _multiline(session: "Session", rest: str) -> None:
    on = session.source.multiline = not session.source.multiline
    say("Enter begins a new line, Alt-Enter sends" if on else "Enter sends, Alt-Enter goes on")


def _read(session: "Session", rest: str) -> None:
    text = read_text(Path(rest).expanduser())
    session.attached.append(text)
    tokens = len(session.talk.chat.model.tokenize(text))
    say(f"{rest}: {tokens} tokens, which go before your next message; /reset drops them")


def _save(session: "Session", rest: str) -> None:
    from gemcut.runtime.chat.transcript import Transcript

    path = Path(rest).expanduser()
    if path.exists():
        try:
            Transcript.read(path)
        except TextError as error:
            raise OutputError(f"{path} is there and no conversation: take another name") from error
    kept = {name: value for name, value in values(session.talk).items() if value is not None}
    Transcript(tuple(session.talk.chat.messages), kept).write(path)
    say(f"{path}: {_exchanges(session)}")


def _load(session: "Session", rest: str) -> None:
    from gemcut.runtime.chat.transcript import Transcript

    path, chat = Path(rest).expanduser(), session.talk.chat
    found = Transcript.read(path)
    before = chat.messages
    chat.resume(found.messages)
    try:
        unknown = restore(session.talk, found.settings)
    except GemcutError:
        chat.messages = before
        raise
    if unknown:
        say(f"{path}: these settings are not known: {', '.join(unknown)}")
    say(f"{path}: {_exchanges(session)}")


def _exchanges(session: "Session") -> str:
    count = sum(message["role"] == "user" for message in session.talk.chat.messages)
    return f"{count} exchange{'s' * (count != 1)}"


def _context(session: "Session", rest: str) -> None:
    chat = session.talk.chat
    taken, size = chat.length(), chat.context.n_ctx_seq
    grid = Table.grid(padding=(0, 2))
    grid.add_row("conversation", f"{_exchanges(session)}, {taken} tokens")
    grid.add_row("context", f"{size} tokens, {max(0, size - taken)} free ({1 - taken / size:.0%})")
    kinds = (f"{c.kind} {format_size(c.bytes)}" for c in chat.context.memory.caches)
    grid.add_row("cache", f"{len(chat.generator.read)} tokens read; {', '.join(kinds)}")
    if chat.unread:
        grid.add_row("not read", f"the oldest {chat.unread} exchanges, for want of room")
    full = "the oldest exchanges are left out" if chat.shifts else "answers end"
    grid.add_row("when full", f"{full}; /set context-shift on|off")
    console().print(grid)


def _stats(session: "Session", rest: str) -> None:
    chat = session.talk.chat
    if not chat.finish:
        raise UsageError("nothing was answered yet")
    say(speed(chat.timing))


COMMANDS = {
    "help": Command("", "this", _help),
    "exit": Command("", "leave; Ctrl-D does, too", _exit),
    "reset": Command("", "a new conversation with the same system message", _reset),
    "retry": Command("", "answer the last message again", _retry),
    "undo": Command("", "drop the last exchange", _undo),
    "edit": Command("", "change the last message, and send it again", _edit),
    "system": Command("[TEXT|none]", "the system message", _system),
    "read": Command("FILE", "put a file's text before your next message", _read),
    "save": Command("FILE", "keep the conversation as JSON", _save),
    "load": Command("FILE", "go on with a conversation that was kept", _load),
    "set": Command("[NAME [VALUE]]", "temperature and other settings", _set),
    "think": Command("[on|off]", "let the model think first, if it can", _switch("think")),
    "hide": Command("[on|off]", "do not show thoughts", _switch("hide")),
    "context": Command("", "what the conversation takes, and what is free", _context),
    "stats": Command("", "how fast the last answer was; /set verbose on for every one", _stats),
    "multiline": Command("", "let Enter begin a new line, and Alt-Enter send; or back", _multiline),
}
_ALIASES = {"clear": "reset", "quit": "exit", "bye": "exit", "speed": "stats", "?": "help"}
