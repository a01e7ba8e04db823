"""`gemcut bench`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from gemcut.cli.common import (
    FILE,
    as_json,
    hub_options,
    local_gguf,
    print_json,
    print_table,
    say,
    stages,
)
from gemcut.cli.outline import show_placement
from gemcut.cli.placing import Wanted, placement_options
from gemcut.cli.titled import Titled
from gemcut.errors import UsageError
from gemcut.sizes import format_size, parse_context

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.runtime.speed.trial import Trial

_PHASES = ("prefill", "decode")
_PLANNED = "as planned"
Runs = list[tuple[str, "Trial"]]  # flags, what came of them


@click.command("bench", cls=Titled)
@click.argument("model", type=FILE)
@click.option("-d", "--depth", default="0", metavar="0,4k,...", help="tokens in the context before")
@click.option("-p", "--n-prompt", type=click.IntRange(0), default=512, show_default=True)
@click.option("-n", "--n-gen", "n_generate", type=click.IntRange(0), default=64, show_default=True)
@click.option(
    "-r", "--repetitions", "repeats", type=click.IntRange(1), default=3, show_default=True
)
@click.option(
    "--compare", multiple=True, metavar="FLAGS", help="another run, as '-ub 2048'; repeat"
)
@placement_options
@hub_options
@as_json
def command(
    model: Path,
    wanted: Wanted,
    revision: str | None,
    offline: bool,
    compare: tuple[str, ...],
    as_json: bool,
    n_prompt: int,
    n_generate: int,
    repeats: int,
    depth: str,
) -> None:
    """Measure how fast a GGUF runs here: prompts and answers, beside what was predicted.

    At every depth a prompt of -p tokens is read and -n tokens are written, -r times after warming
    up; the median is shown with half of the range. Token ids are random, so a mixture of experts
    may use other experts than on real text. Measurements are kept, and correct later predictions.

    \b
    gemcut bench model.gguf --depth 0,4k,16k
    gemcut bench model.gguf --compare '-ngl 0' --compare '-ub 2048 -ctk q8_0'

    What --compare says stands in place of all flags of the run.
    """
    depths = tuple(map(parse_context, depth.split(",")))
    size = {"depths": depths, "n_prompt": n_prompt, "n_generate": n_generate, "repeats": repeats}
    others = [(flags, _parsed(flags)) for flags in compare]
    path, runs = local_gguf(model, revision, offline), []
    for flags, each in [(_PLANNED, wanted), *others]:
        trial = _try(path, each, size)
        runs.append((flags, trial))
    if as_json:
        print_json({"runs": [{"flags": flags} | trial.to_dict() for flags, trial in runs]})
        return
    print_table(_table(path.name, runs))
    for flags, trial in runs:
        for place, (said, found) in trial.memory.items():
            sizes = f"{format_size(int(said))} predicted, {format_size(int(found))} measured"
            click.echo(f"memory of {place}{_named(flags, runs)}: {sizes}")


@click.command("--compare", add_help_option=False)
@placement_options
def _other(wanted: Wanted) -> Wanted:
    """The flags of a run that is compared."""
    return wanted


def _parsed(flags: str) -> Wanted:
    """Raises UsageError for words that are no flags of a run."""
    try:
        words = shlex.split(flags)
        with _other.make_context("--compare", words) as context:
            found: Wanted = _other.invoke(context)
            return found
    except ValueError as error:
        raise UsageError(f"--compare {flags!r:.80}: {error}") from error
    except click.UsageError as error:
        raise UsageError(f"--compare {flags!r:.80}: {error.format_message()}") from error


def _try(path: Path, wanted: Wanted, size: dict[str, Any]) -> "Trial":
    """Load a run and measure it, in a context that is just large enough unless one is given."""
    from functools import partial

    from gemcut import api

    profile = wanted.profile()
    with stages() as progress:
        loading = partial(progress, "loading")
        return api.measure_speed(
            path,
            **size,
            given=wanted.given,
            workload=wanted.workload,
            profile=profile,
            opened=lambda run: show_placement(run.placement),
            tell=say,
            loading=lambda share: loading(round(100 * share), 100),
            progress=partial(progress, "measuring"),
        )


def _table(name: str, runs: Runs) -> Table:
    first = runs[0][1]
    table = Table(
        title=f"{name}: tokens per second, {first.n_prompt} read, {first.n_generate} written"
    )
    if len(runs) > 1:
        table.add_column("run", overflow="fold")
    table.add_column("depth", justify="right")
    for phase in _PHASES:
        table.add_column(f"{phase} predicted", justify="right")
        table.add_column(f"{phase} measured", justify="right")
        if len(runs) > 1:
            table.add_column("ratio", justify="right")
    for flags, trial in runs:
        for row, base in zip(_rows(trial), _rows(first), strict=True):
            cells = [flags] * (len(runs) > 1) + [str(row["depth"])]
            for phase in _PHASES:
                cells += _cells(row[phase], base[phase], len(runs) > 1)
            table.add_row(*cells)
    return table


def _rows(trial: "Trial") -> list[dict[str, Any]]:
    return [row.to_dict() for row in trial.rows]


def _cells(
    found: dict[str, float] | None, base: dict[str, float] | None, several: bool
) -> list[str]:
    """Predicted and measured; of several runs also measured over that of the first."""
    if found is None or base is None:
        return [""] * (2 + several)
    cells = [
        f"{found['predicted']:.4g} ± {found['se']:.2g}",
        f"{found['measured']:.4g} ± {found['spread']:.2g}",
    ]
    return cells + [f"{found['measured'] / base['measured']:.2f}"] * several


def _named(flags: str, runs: Runs) -> str:
    return f" ({flags})" if len(runs) > 1 else ""
