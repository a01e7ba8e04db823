"""`gemcut imatrix`."""

from pathlib import Path

import click

from gemcut.cli.common import (
    CONTEXT,
    FILE,
    as_json,
    print_json,
    restart,
    say,
    steps,
    threads,
)


@click.command("imatrix")
@click.argument("files", metavar="MODEL.gguf", type=FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, required=True, help="the imatrix to write (GGUF)")
@click.option("--text", "texts", type=FILE, multiple=True, help="UTF-8; repeatable")
@click.option(
    "-c", "--context", type=CONTEXT, default="512", show_default=True, help="tokens of a chunk"
)
@click.option("--chunks", type=click.IntRange(min=1), help="at most so many")
@click.option("-ngl", "--gpu-layers", type=int, default=-1, help="default: all that a GPU takes")
@click.option("--parse-special", is_flag=True, help='read "<bos>" and the like as tokens')
@restart
@click.option("--merge", is_flag=True, help="the arguments are imatrix files, to be added up")
@click.option("--plot", type=FILE, help="draw the load of the experts here (PNG)")
@threads
@as_json
def command(
    files: tuple[Path, ...],
    output: Path,
    texts: tuple[Path, ...],
    context: int,
    chunks: int | None,
    gpu_layers: int,
    parse_special: bool,
    restart: bool,
    merge: bool,
    plot: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Collect how much each input of a model's matrices matters, by running text through it.

    Use text like that which the model is to work on: with --text. There is a built-in one for
    trying things out. With --merge add up imatrix files, of llama.cpp's older kind, too.
    """
    from gemcut import api
    from gemcut.cli import routing
    from gemcut.engine import ModelOptions
    from gemcut.outputs import check_outputs
    from gemcut.quantize.coverage import coverage, draw, require_plotting

    if merge and (texts or restart):
        raise click.UsageError("--merge reads no text: it goes without --text and --restart")
    if not merge and len(files) != 1:
        raise click.UsageError("say one model, or --merge and imatrix files")
    check_outputs([output, plot], [*files, *texts])
    if plot:
        require_plotting()
    if merge:
        statistics = api.merge_importance(files, output)
    else:
        if not texts:
            say("no --text: reading the built-in one; text like your own work is better")
        with steps("reading") as progress:
            statistics = api.collect_importance(
                files[0],
                texts,
                output,
                context,
                chunks,
                threads,
                ModelOptions(gpu_layers),
                parse_special,
                restart,
                progress,
                tell=say,
            )
    layers = coverage(statistics)
    if plot and layers:
        draw(layers, plot)
    elif plot:
        say(f"no expert was counted: {plot} is not drawn")
    if as_json:
        print_json({"output": str(output)} | routing.to_dict(statistics))
        return
    routing.report(statistics)
    tensors = len(statistics.entries)
    say(f"{output} has {tensors} tensors' importance, of {statistics.chunk_count} chunks")
