"""`gemcut plan`."""

from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Any

import click

from gemcut.artefact import write_text
from gemcut.cli.common import (
    FILE,
    as_json,
    downloads,
    print_json,
    print_table,
    reading_options,
    say,
    threads,
)
from gemcut.cli.outcome import explanation, tables
from gemcut.cli.planning import (
    Asked,
    known,
    machine_for,
    outcome_of,
    plainly,
    planning_options,
    say_priors,
    task,
)

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.plan import Plan
    from gemcut.quantize.outcome import Outcome, Task

_ALONE = "--plan goes with --export-tensor-types and --llama-args alone"


@click.command("plan")
@click.argument("source", metavar="[SRC]", required=False)
@planning_options
@click.option("-o", "--output", type=FILE, help="the plan.json to write")
@click.option("--plan", "saved", type=FILE, help="no SRC: export a plan that was made before")
@click.option("--explain", metavar="TENSOR", help="what else it could be, and what that costs")
@click.option("--export-tensor-types", "types_file", type=FILE, help="for llama-quantize")
@click.option("--llama-args", is_flag=True, help="print llama-server's command line")
@reading_options
@threads
@as_json
def command(
    source: str | None,
    asked: Asked,
    output: Path | None,
    saved: Path | None,
    explain: str | None,
    types_file: Path | None,
    llama_args: bool,
    threads: int | None,
    as_json: bool,
    **reading: Any,
) -> None:
    """Choose a type and a place for every tensor of SRC: the best file for a machine and a use.

    Of the weights a row of each tensor is read, to know the source again, and nothing is loaded:
    all numbers are predicted. A limit that is not given is this machine's.
    """
    from gemcut.outputs import check_outputs

    check_outputs([output, types_file], [*asked.files, saved])
    if saved:
        if output or explain:
            raise click.UsageError(_ALONE)
        _export_saved(source, saved, asked, types_file, llama_args, as_json)
        return
    if source is None:
        raise click.UsageError("say what to plan for: SRC, a checkpoint's folder, a Hub id, a GGUF")
    made, outcome = _made(source, asked, threads, bool(types_file), reading)
    check_outputs([output, types_file], [*made.model.files])
    if output:
        outcome.plan.write(output)
    _export(outcome.plan, types_file)
    if llama_args:
        _print_arguments(outcome.plan, as_json)
    elif explain:
        _explain(made, outcome, explain, as_json)
    elif as_json:
        print_json(outcome.to_dict())
    else:
        _print(made, outcome, source, output)


def _made(
    source: str, asked: Asked, threads: int | None, plain: bool, reading: dict[str, Any]
) -> "tuple[Task, Outcome]":
    from gemcut import api

    model = api.open_source(source, fetched=downloads(), **reading)
    for note in model.notes:
        say(note)
    found, machine = known(asked, model), machine_for(asked.intent, threads)
    request = plainly(asked.intent.request) if plain else asked.intent.request
    made = task(model, asked.intent, found, request, machine)
    return made, outcome_of(made, alternatives=True)


def _print(made: "Task", outcome: "Outcome", source: str, output: Path | None) -> None:
    for table in tables(outcome, made):
        print_table(table)
    say_priors(made, "`gemcut quantize --measure`, with the same options")
    if output:
        words = ["gemcut", "quantize", source, "--plan", str(output)]
        say(f"{output} is written; next: {join(words)} -o FILE.gguf")
    else:
        say("next: keep the plan with -o plan.json, then `gemcut quantize SRC --plan plan.json`")


def _export(plan: "Plan", types_file: Path | None) -> None:
    from gemcut.quantize.export import mixture, tensor_types

    if types_file is None:
        return
    write_text(types_file, tensor_types(plan))
    say(
        f"{types_file} is written: llama-quantize --tensor-type-file {join([str(types_file)])} "
        f"IN.gguf OUT.gguf {mixture(plan)}"
    )


def _print_arguments(plan: "Plan", as_json: bool) -> None:
    from gemcut.quantize.export import server_arguments

    words = server_arguments(plan, "FILE.gguf")
    if as_json:
        print_json(words)
    else:
        click.echo(join(words))


def _export_saved(
    source: str | None,
    saved: Path,
    asked: Asked,
    types_file: Path | None,
    llama_args: bool,
    as_json: bool,
) -> None:
    """What a saved plan says, in llama.cpp's words."""
    from gemcut.plan import Plan

    if source or asked.said or asked.imatrix:
        raise click.UsageError(_ALONE)
    if not (types_file or llama_args):
        raise click.UsageError("say what of --plan to export: --export-tensor-types, --llama-args")
    plan = Plan.read(saved)
    _export(plan, types_file)
    if llama_args:
        _print_arguments(plan, as_json)


def _explain(made: "Task", outcome: "Outcome", name: str, as_json: bool) -> None:
    from dataclasses import asdict, replace

    from gemcut.quantize.explain import explain

    found = explain(replace(made, loading=outcome.loading), outcome.plan, name)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    for each in found:
        print_table(explanation(each))
