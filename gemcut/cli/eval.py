"""`gemcut eval`."""

from pathlib import Path

import click

from gemcut.cli.common import (
    CONTEXT,
    FILE,
    as_json,
    hub_options,
    local_gguf,
    print_json,
    print_table,
    say,
    steps,
    threads,
)


@click.command("eval")
@click.argument("files", metavar="FILES...", type=FILE, nargs=-1, required=True)
@click.option("--reference", type=FILE, help="the file the others are compared with")
@click.option("--text", "texts", type=FILE, multiple=True, required=True, help="UTF-8; repeatable")
@click.option(
    "-c", "--context", type=CONTEXT, default="512", show_default=True, help="tokens of a chunk"
)
@click.option("--chunks", type=int, help="at most so many chunks of each text")
@hub_options
@threads
@as_json
def command(
    files: tuple[Path, ...],
    reference: Path | None,
    texts: tuple[Path, ...],
    context: int,
    chunks: int | None,
    revision: str | None,
    offline: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Score GGUF FILES on texts: perplexity and, against a reference, what each one lost.

    A file may be one on the Hub: owner/name:FILE.

    All files read the same chunk before any goes on, so no file of logits is needed. Perplexity
    is llama.cpp's.
    """
    from gemcut import api
    from gemcut.eval.table import table, to_dict

    files = tuple(local_gguf(file, revision, offline) for file in files)
    reference = reference and local_gguf(reference, revision, offline)
    with steps("scoring") as progress:
        comparison = api.evaluate(files, reference, texts, context, chunks, threads, progress)
    for note in comparison.notes:
        say(note)
    if as_json:
        print_json(to_dict(comparison))
    else:
        print_table(table(comparison))
