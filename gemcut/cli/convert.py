"""`gemcut convert`."""

from pathlib import Path
from typing import Any

import click

from gemcut.cli import common
from gemcut.cli.common import (
    as_json,
    bar,
    dry_run,
    output_options,
    print_json,
    say,
    source_options,
    threads,
    written,
)


@click.command("convert")
@source_options
@output_options
@click.option(
    "--type",
    "kind",
    type=click.Choice(["bf16", "f16", "f32"], case_sensitive=False),
    default="bf16",
    show_default=True,
    help="of the tensors that are not kept in F32",
)
@common.frugal
@threads
@dry_run
@as_json
def command(
    source: str,
    output: Path,
    split_size: int | None,
    restart: bool,
    kind: str,
    frugal: bool,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
    **reading: Any,
) -> None:
    """Write SRC (a checkpoint's folder, a Hub id, or a GGUF) as a GGUF, unquantized.

    A GGUF whose experts have types of their own becomes one that any llama.cpp loads: what is cut
    stays in its type, and every stack of experts gets the largest of its experts' types.
    """
    from gemcut import api
    from gemcut.ggml import type_named

    scratch = common.scratch(output, frugal)
    model = api.open_source(
        source, scratch=scratch, fetched=common.downloads(), restack=True, **reading
    )
    for note in model.notes:
        say(note)
    plan = api.make_plan(model, api.Target(kind))
    files = api.planned_files(model, plan, output, split_size)
    if not dry_run:
        with bar(f"converting to {kind}", model.weights) as progress:
            api.convert_checkpoint(
                model,
                output,
                kind,
                threads=threads,
                progress=progress,
                split_size=split_size,
                restart=restart,
                tell=say,
            )
    if as_json:
        result = {"files": [str(path) for path in files], "size": sum(files.values())}
        print_json({"output": str(output), "type": kind, "weights": model.weights} | result)
    else:
        kept = sorted({e.type for e in plan.tensors.values() if type_named(e.type).quantized})
        kinds = " and ".join([kind, *([", ".join(kept)] if kept else [])])
        say(f"{written(files, dry_run)} ({len(model.tensors)} tensors, {kinds})")
