"""What the options of a run ask for: read and checked before anything is loaded."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemcut import artefact
from gemcut.cli.terminal.asking import question, read_text
from gemcut.cli.terminal.settings import SAMPLING, Talk
from gemcut.engine import Sampling
from gemcut.errors import UsageError

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.llama import Context
    from gemcut.runtime.chat.timing import Timing

_GRAMMARS = ("json_object", "json_schema", "grammar")


@dataclass(frozen=True)
class Asked:
    """A run, as it was asked for."""

    question: str | None  # to answer first; None: nothing
    chats: bool  # goes on until somebody leaves
    system: str | None
    sampling: Mapping[str, Any]  # what to change of the file's
    options: Mapping[str, Any]  # the others, by the names of the command

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> "Asked":
        """Make sense of the command's options.

        Raises:
            UsageError: they contradict each other, or there is nothing to answer.
            TextError: a file or what is piped in is no text.
        """
        chats = _chats(options)
        piped = not options["interactive"]  # else it is the messages that are piped in
        found = question(options["prompt"], options["files"], piped) or None
        if not chats and found is None:
            raise UsageError("there is nothing to answer: -p TEXT, -f FILE, or a text on stdin")
        given = {field: options[field] for field, *_ in SAMPLING.values()}
        changes = {field: value for field, value in given.items() if value is not None}
        if (grammar := _grammar(options)) is not None:
            changes["grammar"] = grammar
        Sampling(**changes)  # refuses what cannot be before the model is loaded
        return cls(found, chats, _system(options), changes, options)

    def talk(self, context: "Context", record: Callable[["Timing"], None]) -> Talk:
        """The conversation, at its beginning; it closes with the context's model.

        Args:
            record: told how long answers took.
        """
        from gemcut.runtime.chat.chat import Chat, recommended_sampling

        options, sampling = self.options, recommended_sampling(context.model)
        sampling = replace(sampling, **self.sampling)
        chat = Chat(context, sampling, self.system, options["think"])
        chat.stops, chat.shifts = options["stop"], options["context_shift"]
        return Talk(
            chat,
            options["max_tokens"],
            options["raw"],
            options["hide_thoughts"],
            options["verbose"],
            record,
        )


def _chats(options: Mapping[str, Any]) -> bool:
    """Whether it is a chat: asked for, or nobody says what else there is to answer."""
    silent = options["prompt"] is None and not options["files"]
    chats = bool(options["interactive"] or (silent and sys.stdin.isatty()))
    if chats and options["as_json"]:
        raise click.UsageError("--json prints one answer: -p TEXT, -f FILE, or a text on stdin")
    return chats


def _system(options: Mapping[str, Any]) -> str | None:
    if options["system"] is not None and options["system_file"]:
        raise click.UsageError("--system and --system-file both say what the system message is")
    return read_text(options["system_file"]) if options["system_file"] else options["system"]


def _grammar(options: Mapping[str, Any]) -> str | None:
    if sum(options[name] not in (None, False) for name in _GRAMMARS) > 1:
        raise click.UsageError("--json-object, --json-schema and --grammar exclude each other")
    if options["grammar"]:
        return read_text(options["grammar"])
    schema = options["json_schema"]
    if schema is None and not options["json_object"]:
        return None
    from gemcut.runtime.language.grammar import JSON_GRAMMAR, schema_grammar

    return JSON_GRAMMAR if schema is None else schema_grammar(_schema(schema))


def _schema(text: str) -> Any:
    """A JSON schema out of a file, or as it stands here."""
    if not text.strip():
        raise UsageError("--json-schema is empty: wanted a JSON schema, or a file with one")
    inline = text.lstrip().startswith(("{", "true", "false"))
    try:
        return artefact.parse(text if inline else read_text(Path(text).expanduser()))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--json-schema {text!r:.60}: not JSON: {error}") from error
