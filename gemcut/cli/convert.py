"""`gemcut convert`."""

from pathlib import Path

import click

from gemcut.cli.common import FILE, as_json, bar, dry_run, print_json, say, source_options, threads


@click.command("convert")
@source_options
@click.option("-o", "--output", type=FILE, required=True, help="the GGUF to write")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["bf16", "f16", "f32"], case_sensitive=False),
    default="bf16",
    show_default=True,
    help="of the tensors that are not kept in F32",
)
@threads
@dry_run
@as_json
def command(
    source: str,
    revision: str | None,
    offline: bool,
    output: Path,
    kind: str,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the checkpoint SRC (a folder or a Hub id) as a GGUF, unquantized."""
    from gemcut import api
    from gemcut.sizes import format_size

    model = api.open_source(source, revision, offline)
    for note in model.notes:
        say(note)
    plan = api.make_plan(model, api.Target(kind))
    size = api.planned_size(model, plan)
    if not dry_run:
        with bar(f"converting to {kind}", model.weights) as progress:
            api.convert_checkpoint(model, output, kind, threads, progress)
    if as_json:
        print_json({"output": str(output), "size": size, "type": kind, "weights": model.weights})
    else:
        verb = "would be" if dry_run else "is"
        say(f"{output} {verb} {format_size(size)} ({len(model.tensors)} tensors, {kind})")
