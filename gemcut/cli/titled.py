"""Options under titles: a command with many of them stays readable in its help."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_UNTITLED = "Options"
_PARAMS = "__click_params__"  # where click keeps the options of a function until it is a command


class Titled(click.Command):
    """A command whose help shows options under the titles they were given by `titled`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those without a title first."""
        for title, records in by_title(self, ctx).items():
            with formatter.section(title):
                formatter.write_dl(records)


def by_title(command: click.Command, ctx: click.Context) -> Mapping[str, list[tuple[str, str]]]:
    """A command's options as its help names and explains them; those without a title first."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
        if record:
            found[getattr(param, "title", _UNTITLED)].append(record)
    return {title: found[title] for title in sorted(found, key=lambda title: title != _UNTITLED)}


def titled(title: str, *options: Decorator) -> Decorator:
    """All these options, under a title; the first comes first."""

    def apply(command: Callable[..., Any]) -> Callable[..., Any]:
        before = {id(param) for param in getattr(command, _PARAMS, ())}
        for option in reversed(options):
            command = option(command)
        for param in getattr(command, _PARAMS):
            if id(param) not in before:
                param.title = title
        return command

    return apply
