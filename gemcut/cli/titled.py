"""Options under titles: a command with many of them stays readable in its help."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_PARAMS = "__click_params__"  # where click keeps the options of a function until it is a command


class Titled(click.Command):
    """A command whose help shows options under the titles they were given by `titled`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those without a title first."""
        sections: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record:
                sections[getattr(param, "title", "Options")].append(record)
        for title in sorted(sections, key=lambda title: title != "Options"):
            with formatter.section(title):
                formatter.write_dl(sections[title])


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
