"""What the commands share: parameter types, options, progress on stderr, JSON on stdout."""

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from gemcut.engine import MAX_THREADS
from gemcut.errors import UsageError, printable
from gemcut.sizes import format_size, parse_context, parse_size

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

THREADS = click.IntRange(1, MAX_THREADS)
threads = click.option("-t", "--threads", type=THREADS, help="default: all cores")
restart = click.option("--restart", is_flag=True, help="throw interrupted work away, begin anew")
as_json = click.option("--json", "as_json", is_flag=True, help="the result as JSON on stdout")
dry_run = click.option("--dry-run", is_flag=True, help="say what would be written, write nothing")


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The GGUF to write, in one file or several, and what to do with unfinished work."""
    command = restart(command)
    split = "in files of about so many bytes (4G), which llama.cpp loads as one"
    command = click.option("--split-size", type=SIZE, help=split)(command)
    help_ = "the GGUF to write; with --split-size NAME-00001-of-0000N.gguf and so on"
    return click.option("-o", "--output", type=FILE, required=True, help=help_)(command)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """SRC and how it is read."""
    return reading_options(click.argument("source", metavar="SRC")(command))


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where SRC may come from, and what may be odd about it: arguments of `api.open_source`."""
    for option in reversed(_READING):
        command = option(command)
    return command


def hub_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a Hub id in place of a file is fetched: arguments of `local_gguf`."""
    for option in reversed(_HUB):
        command = option(command)
    return command


def local_gguf(source: Path, revision: str | None, offline: bool) -> Path:
    """The file to run: a path as it is, a Hub id (`owner/name:FILE`) fetched, with progress.

    Raises:
        CheckpointError: see `gemcut.api.local_gguf`.
    """
    from gemcut import api

    return api.local_gguf(source, revision, offline, downloads())


_HUB = (
    click.option("--revision", help="branch, tag or commit of a Hub id"),
    click.option("--offline", is_flag=True, help="never touch the network"),
)
_READING = (
    *_HUB,
    click.option("--ignore", multiple=True, help="leave out tensors of these names (x.*); repeat"),
    click.option(
        "--allow-requantize",
        "requantize",
        is_flag=True,
        help="cut tensors that are in less than 8 bits already",
    ),
    click.option(
        "--allow-nonfinite",
        "nonfinite",
        is_flag=True,
        help="pass NaN and infinite weights on, into types that can hold them",
    ),
    click.option("--pre-tokenizer", help="llama.cpp's name, where it is not recognised"),
)


frugal = click.option(
    "--frugal",
    is_flag=True,
    help="of a Hub id, keep one file of weights at a time on the disk; it lies beside the output",
)


def scratch(output: Path, frugal: bool) -> Path | None:
    """Where a frugal command fetches weights to: the same place each time, so that it resumes."""
    return output.with_name(f"{output.name}.weights") if frugal else None


def downloads() -> Callable[[str, int, int], None]:
    """Progress of what is fetched, until the command ends; told (what, bytes done, in all)."""
    return click.get_current_context().with_resource(
        stages(DownloadColumn(), TransferSpeedColumn())
    )


@contextmanager
def stages(*amount: ProgressColumn) -> Iterator[Callable[[str, int, int], None]]:
    """Bars on stderr that come and go; told (what, done, in all)."""
    progress = _progress(*(amount or (TaskProgressColumn(),)))
    tasks: dict[str, TaskID] = {}

    def told(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=total)
            progress.start()
        progress.update(tasks[what], completed=done, total=total)
        if done >= total:
            progress.remove_task(tasks.pop(what))
            if not tasks:
                progress.stop()

    try:
        yield told
    finally:
        progress.stop()


@cache  # bars within bars share a screen only if they share its console
def console() -> Console:
    """The console for talk: stderr, so that stdout holds results alone."""
    return Console(stderr=True, markup=False, emoji=False, highlight=False)


def say(text: str) -> None:
    """A line of talk on stderr."""
    console().print(printable(text), soft_wrap=True)


def written(files: Mapping[Path, int], dry_run: bool) -> str:
    """What is, or with a dry run would be, written: the first of the files and all their bytes."""
    first, *others = files
    if not others:
        return f"{first} {'would be' if dry_run else 'is'} {format_size(files[first])}"
    verb = "would be" if dry_run else "are"
    return f"{first} and {len(others)} more {verb} {format_size(sum(files.values()))}"


def new_table(*titles: str, folded: Collection[str] = (), collapsed: bool = False) -> Table:
    """A table; a column whose title ends in > is aligned to the right.

    Args:
        folded: titles of columns that are broken, rather than cut, where there is little room.
        collapsed: one space between columns, rather than two.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=collapsed)
    for title in titles:
        table.add_column(
            title.removesuffix(">"),
            justify="right" if title.endswith(">") else "left",
            overflow="fold" if title in folded else "ellipsis",
        )
    return table


def print_table(table: RenderableType) -> None:
    """A table, or several, on stdout, as wide as it needs when nobody looks at it on a terminal."""
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


def _progress(*amount: ProgressColumn) -> Progress:
    """A bar that leaves no trace when it is done, and none at all where nobody watches."""
    talk = console()
    columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn())
    return Progress(*columns, console=talk, transient=True, disable=not talk.is_terminal)
