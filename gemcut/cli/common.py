"""What the commands share: parameter types, options, progress on stderr, JSON on stdout."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from gemcut.errors import UsageError
from gemcut.sizes import parse_context, parse_size

FILE = click.Path(path_type=Path)


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic only in newer clicks
    """A parameter read by a library function; what it refuses is wrong usage."""

    def __init__(self, name: str, parse: Callable[[str], int]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse, or fail as click does."""
        if isinstance(value, int):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


SIZE = _Parsed("size", parse_size)
CONTEXT = _Parsed("tokens", parse_context)

threads = click.option("-t", "--threads", type=click.IntRange(1, 512), help="default: all cores")
as_json = click.option("--json", "as_json", is_flag=True, help="the result as JSON on stdout")
dry_run = click.option("--dry-run", is_flag=True, help="say what would be written, write nothing")


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """SRC and where it may come from."""
    command = click.argument("source", metavar="SRC")(command)
    command = click.option("--revision", help="branch, tag or commit of a Hub id")(command)
    offline = click.option("--offline", is_flag=True, help="never touch the network")
    return offline(command)


def console() -> Console:
    """The console for talk: stderr, so that stdout holds results alone."""
    return Console(stderr=True, markup=False, emoji=False, highlight=False)


def say(text: str) -> None:
    """A line of talk on stderr."""
    console().print(text, soft_wrap=True)


def print_table(table: Table) -> None:
    """A table on stdout, as wide as it needs when nobody looks at it on a terminal."""
    width = None if sys.stdout.isatty() else 200
    Console(markup=False, emoji=False, highlight=False, width=width).print(table)


def print_json(document: Any) -> None:
    """A result as JSON on stdout."""
    click.echo(json.dumps(document, indent=2, sort_keys=True))


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields what is to be told how much was just done."""
    with _progress(TaskProgressColumn()) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.advance(task, done)


@contextmanager
def steps(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr that counts things; told (done, total)."""
    with _progress(MofNCompleteColumn()) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _progress(amount: ProgressColumn) -> Progress:
    """A bar that leaves no trace when it is done, and none at all where nobody watches."""
    talk = console()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    return Progress(*columns, console=talk, transient=True, disable=not talk.is_terminal)
