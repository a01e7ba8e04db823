"""The command reference, docs/commands.md, out of the commands themselves.

    python -m gemcut.cli.reference > docs/commands.md        as `make docs` does

What stands there is what `--help` says: click's own words for every option, as tables. An example
in a help text begins, as click has it, with a line of "\\b".
"""

import re
from collections.abc import Iterator

import click

from gemcut.cli import COMMANDS, main
from gemcut.cli.titled import by_title

_MARKS = re.compile(r"[|<*_`]")
_BAR = "\\|"  # within code the only mark that a table sees
_HEAD = """# Commands

Made by `make docs` out of the program: `gemcut COMMAND --help` says the same. K, M and G are
decimal, KiB, MiB and GiB binary, a plain number is bytes; only a context (`-c`) reads k as 1024.
A result goes to stdout, all talk to stderr; `--json` makes the result one JSON document. Exit code
0: done; 1: an error, said in one line; 2: wrong usage; 130: Ctrl-C.
"""


def reference() -> str:
    """The whole file."""
    names = " · ".join(f"[{name}](#gemcut-{name})" for name in COMMANDS)
    sections = (_section(name) for name in COMMANDS)
    return "\n".join([_HEAD, names, *sections])


def _section(name: str) -> str:
    above = click.Context(main, info_name="gemcut", **main.context_settings)
    command = main.get_command(above, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=above)
    usage = " ".join(["gemcut", name, *command.collect_usage_pieces(context)])
    parts = ["", f"## gemcut {name}", "", f"`{usage}`", "", *_text(command.help or "")]
    return "\n".join([*parts, *_tables(command, context)])


def _text(text: str) -> Iterator[str]:
    """Paragraphs of a help text; what click leaves as it is (after a "\\b") is an example."""
    for paragraph in text.split("\n\n"):
        lines = [line.strip() for line in paragraph.strip().splitlines()]
        example = lines[:1] == ["\b"]
        yield from (["```sh", *lines[1:], "```", ""] if example else [" ".join(lines), ""])


def _tables(command: click.Command, context: click.Context) -> Iterator[str]:
    """The options under their titles."""
    for title, records in by_title(command, context).items():
        yield from (f"| {title} | |", "|---|---|")
        yield from (
            f"| `{names.replace('|', _BAR)}` | {_cell(help_)} |" for names, help_ in records
        )
        yield ""


def _cell(text: str) -> str:
    """Words of click's in a table of Markdown, which reads some marks otherwise."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))


if __name__ == "__main__":
    click.echo(reference(), nl=False)
