"""`gemcut demo`."""

from pathlib import Path

import click

from gemcut.cli.common import FILE, as_json, bar, print_json, print_table, say, steps, threads


class _Teller:
    """Shows the walk's steps on stderr."""

    say = staticmethod(say)
    bar = staticmethod(bar)
    steps = staticmethod(steps)


@click.command("demo")
@click.option(
    "--folder",
    type=FILE,
    default=Path("gemcut-demo"),
    show_default=True,
    help="where the files are written",
)
@threads
@as_json
def command(folder: Path, threads: int | None, as_json: bool) -> None:
    """Walk the whole way on an embedded model: convert, cut, run, compare. Offline."""
    from gemcut.demo.walk import walk
    from gemcut.eval.report.record import to_dict
    from gemcut.eval.report.table import show
    from gemcut.lock import alone_in

    with alone_in(folder):
        result = walk(folder, _Teller(), threads)
    if as_json:
        print_json(to_dict(result.report) | {"sample": result.sample})
        return
    print_table(show(result.report))
    click.echo(f"\n{result.cut.name} was asked: {result.question}\n{result.sample}\n")
    click.echo(f"The files are in {folder}. Next:")
    for line in result.next_steps:
        click.echo(f"  {line}")
