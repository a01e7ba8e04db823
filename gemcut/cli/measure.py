"""`gemcut measure`."""

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from gemcut.cli.common import (
    CONTEXT,
    FILE,
    as_json,
    downloads,
    new_table,
    print_json,
    print_table,
    restart,
    say,
    source_options,
    steps,
    threads,
)

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.sensitivity import Sensitivity


@click.command("measure")
@source_options
@click.option("-o", "--output", type=FILE, required=True, help="the sensitivity.json to write")
@click.option("--imatrix", type=FILE, help="an importance matrix (GGUF or .dat)")
@click.option(
    "--types", metavar="A,B,...", help="measure these types alone (default: all that make sense)"
)
@click.option(
    "--rows", type=click.IntRange(2), default=512, show_default=True, help="of a tensor, at most"
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="which rows are drawn"
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="take fewer rows and coarser groups if it would take longer",
)
@click.option("--probe", type=FILE, help="a Q8_0 of SRC: measure in it what errors cost")
@click.option("--text", "texts", type=FILE, multiple=True, help="to probe on; UTF-8; repeatable")
@click.option(
    "--chunks", type=click.IntRange(2), default=16, show_default=True, help="of the text, to probe"
)
@click.option(
    "-c", "--context", type=CONTEXT, default="512", show_default=True, help="tokens of a chunk"
)
@click.option("-ngl", "--gpu-layers", type=int, default=-1, help="default: all that a GPU takes")
@restart
@threads
@as_json
def command(
    source: str,
    output: Path,
    imatrix: Path | None,
    types: str | None,
    rows: int,
    seed: int,
    minutes: float | None,
    probe: Path | None,
    texts: tuple[Path, ...],
    chunks: int,
    context: int,
    gpu_layers: int,
    restart: bool,
    threads: int | None,
    as_json: bool,
    **reading: Any,
) -> None:
    """Measure what every tensor of SRC loses in every type; a plan for any size starts from that.

    A few rows of every tensor, and of every expert, go through each type and back. With --probe it
    is measured, too, what such errors cost the whole model; without, that is a prior.
    """
    if texts and probe is None:
        raise click.UsageError("--text is what --probe reads: say which file to probe")
    from gemcut import api
    from gemcut.engine import ModelOptions
    from gemcut.outputs import check_outputs
    from gemcut.quantize.measure import Request
    from gemcut.quantize.subject import Sampling

    check_outputs([output], [imatrix, probe, *texts])
    model = api.open_source(source, fetched=downloads(), **reading)
    for note in model.notes:
        say(note)
    if imatrix and (line := api.missing_importance(model, api.load_importance(imatrix, model))):
        say(line)
    sampling = Sampling(rows, min(Sampling.first, rows), seed=seed)
    wanted = None if types is None else [name.strip() for name in types.split(",")]
    probing = None
    if probe:
        probing = api.probing(probe, texts, chunks, context, ModelOptions(gpu_layers))
        if not texts:
            say("no --text: probing on the built-in one; text like your own work is better")
    request = Request(sampling, wanted, minutes, probing)
    start = perf_counter()
    with steps("measuring") as progress:
        sensitivity = api.measure_sensitivity(
            model, output, imatrix, request, threads, restart, progress, tell=say
        )
    seconds = perf_counter() - start
    if as_json:
        print_json({"output": str(output), "seconds": seconds} | _to_dict(sensitivity))
        return
    print_table(_table(sensitivity))
    say(f"{output} is written, after {seconds / 60:.1f} minutes; {_weights(sensitivity)}")


def _weights(sensitivity: "Sensitivity") -> str:
    groups = sensitivity.groups.values()
    probed = sum(group.source == "probe" for group in groups)
    if not probed:
        return "what errors cost the model is a prior: believed, not measured"
    return f"of {len(groups)} groups {probed} were probed for what errors cost the model" + (
        "" if probed == len(groups) else ", the others have priors"
    )


def _to_dict(sensitivity: "Sensitivity") -> dict[str, Any]:
    from gemcut.quantize.measure import by_role

    roles = {
        role: {name: vars(spread) for name, spread in errors.items()}
        for role, errors in by_role(sensitivity).items()
    }
    groups = {name: vars(group) for name, group in sensitivity.groups.items()}
    return {"roles": roles, "groups": groups, "settings": dict(sensitivity.settings)}


def _table(sensitivity: "Sensitivity") -> Table:
    """Roles across, candidates down: mean relative squared error and its spread over tensors."""
    from gemcut.quantize.measure import by_role
    from gemcut.tensor_sensitivity import candidate

    roles = by_role(sensitivity)
    names = sorted({name for errors in roles.values() for name in errors}, key=_rank)
    titles = (f"{role.replace('_', ' ')}>" for role in roles)
    table = new_table("relative error in", "bpw>", *titles)
    for name in names:
        cells = (_cell(errors.get(name)) for errors in roles.values())
        table.add_row(name, f"{candidate(name).type.bpw:.2f}", *cells)
    return table


def _rank(name: str) -> tuple[float, str]:
    from gemcut.tensor_sensitivity import candidate

    return candidate(name).type.bpw, name


def _cell(spread: Any) -> str:
    if spread is None:
        return ""
    if spread.count == 1 or not spread.mean:
        return f"{spread.mean:.2e}"
    return f"{spread.mean:.2e} ±{spread.deviation / spread.mean:4.0%}"
