"""`gemcut eval`."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemcut.cli.common import (
    FILE,
    as_json,
    local_gguf,
    print_json,
    print_table,
    reading_options,
    say,
    stages,
    threads,
)
from gemcut.cli.titled import Titled, titled
from gemcut.errors import EngineError, UsageError

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.eval.comparison import Report

Progress = Callable[[str, int, int], None]

_COUNT = click.IntRange(0)
_WHAT = titled(
    "What is compared",
    click.option("--reference", type=FILE, help="the file that the others are held against"),
    click.option("--kld-base", type=FILE, help="in its place: llama.cpp's --save-all-logits"),
    click.option(
        "--sweep",
        metavar="A,B,...",
        help="FILES is one SRC, cut to Q8_0,size=14G,...",
    ),
    click.option("--imatrix", type=FILE, help="that a sweep cuts with"),
    click.option("--keep", type=FILE, metavar="FOLDER", help="of a sweep's files; else removed"),
    click.option("--results", type=FILE, multiple=True, help="folders of earlier -o; repeat"),
)
_ON_WHAT = titled(
    "On what",
    click.option("--text", "texts", type=FILE, multiple=True, help="file, folder, .jsonl; repeat"),
    click.option(
        "--framing",
        type=click.Choice(["raw", "bos", "chat", "own"]),
        default="raw",
        show_default=True,
        help="how it is read; own: answers of the reference",
    ),
    click.option("-c", "--context", default="512", show_default=True, help="tokens: 512,4k"),
    click.option("--chunks", type=int, help="at most so many of each text"),
    click.option("-ctk", "--cache-type-k", "type_k", metavar="A,B", help="also with these keys"),
    click.option("-ctv", "--cache-type-v", "type_v", metavar="A,B", help="and these values"),
    click.option("--floor", type=_COUNT, default=8, show_default=True, help="chunks; 0: no floor"),
    click.option("--routing", type=_COUNT, default=4, show_default=True, help="chunks; 0: none"),
    click.option("--task", "tasks", multiple=True, metavar="FILE", help="with answers; repeat"),
    click.option("--task-limit", type=click.IntRange(1), help="of each task so many items"),
    click.option("--speed", is_flag=True, help="measure memory and tokens/s, too"),
    click.option("--speed-context", default="8k", show_default=True, help="they are measured with"),
)
_RESULTS = titled(
    "What comes of it",
    click.option("-o", "--output", type=FILE, metavar="FOLDER", help="page, card, CSV, JSON, ..."),
    click.option("--by-domain", is_flag=True, help="a table of the texts' domains, too"),
    click.option("--save-kld", type=FILE, help="the reference's logits for llama-perplexity"),
    click.option("--no-cache", is_flag=True, help="score all of it anew, and keep nothing"),
)


@click.command("eval", cls=Titled)
@click.argument("files", metavar="FILES...", type=FILE, nargs=-1)
@_WHAT
@_ON_WHAT
@_RESULTS
@reading_options
@threads
@as_json
def command(output: Path | None, by_domain: bool, as_json: bool, **said: Any) -> None:
    """Compare GGUF FILES: perplexity and, against a reference, what each one lost.

    \b
    gemcut eval small.gguf --reference big.gguf --text text.txt
    gemcut eval --sweep Q8_0,Q4_K_M,size=14G CHECKPOINT -o report
    gemcut eval small.gguf --reference big.gguf -ctk q8_0 -ctv q8_0 --speed
    gemcut eval --results report --results earlier

    Intervals are of 95 %. Scores are kept: what was interrupted goes on where it stopped, and a
    further file or text costs only itself. Perplexity is llama.cpp's. A file may be one on the Hub:
    owner/name:FILE.
    """
    from gemcut.eval.report.folder import check_folder
    from gemcut.eval.report.table import show
    from gemcut.lock import alone_in

    if output:
        check_folder(output)
    with ExitStack() as stack:
        if output:
            stack.enter_context(alone_in(output))
        with ExitStack() as means:
            report = _report(means, said)
        if as_json:
            print_json(report.to_dict())
        else:
            print_table(show(report, by_domain))
        if output:  # last: what was found is to be seen even if it cannot be kept
            _write(report, output)
    if failed := {
        row.column.name for each in report.comparisons for row in each.rows if row.failure
    }:
        raise EngineError(f"not scored: {', '.join(sorted(failed))}")


def _report(stack: ExitStack, said: dict[str, Any]) -> "Report":
    """Whichever was asked for: what was found before, a sweep, or files."""
    if said["results"]:
        return _joined(said)
    if not said["files"]:
        raise UsageError("no file to score: name a GGUF, or --results of earlier comparisons")
    progress = stack.enter_context(stages())
    if said["sweep"] is not None:
        files, reference = _swept(stack, progress, said)
    else:
        files, reference = _given(said)
    return _compared(files, reference, progress, said)


def _joined(said: dict[str, Any]) -> "Report":
    from gemcut.eval.join import join
    from gemcut.eval.report.record import read

    if said["files"] or said["sweep"]:
        raise UsageError("--results shows what was found before: name no files beside it")
    return join([read(folder) for folder in said["results"]])


def _given(said: dict[str, Any]) -> tuple[Sequence[Path], Path | None]:
    """The files, from the Hub where that is said."""
    if idle := [name for name in ("imatrix", "keep") if said[name]]:
        raise UsageError(f"--{idle[0]} is of what a sweep cuts: name --sweep, or leave it out")
    revision, offline, reference = said["revision"], said["offline"], said["reference"]
    files = [local_gguf(file, revision, offline) for file in said["files"]]
    return files, reference and local_gguf(reference, revision, offline)


def _swept(
    stack: ExitStack, progress: Progress, said: dict[str, Any]
) -> tuple[Sequence[Path], Path | None]:
    """The files of a sweep, built for as long as the stack is open."""
    from gemcut import api

    levels = api.parse_levels(said["sweep"])
    if len(said["files"]) > 1:
        raise UsageError(f"--sweep cuts one SRC, {len(said['files'])} are named")
    reading = ("revision", "offline", "ignore", "requantize", "nonfinite", "pre_tokenizer")
    model = api.open_source(str(said["files"][0]), **{name: said[name] for name in reading})
    sweep = stack.enter_context(
        api.swept(
            model,
            levels,
            said["keep"] or Path(),
            bool(said["keep"]),
            said["reference"],
            said["imatrix"],
            said["threads"],
            progress,
            say,
        )
    )
    return sweep.files, sweep.reference


def _compared(
    files: Sequence[Path], reference: Path | None, progress: Progress, said: dict[str, Any]
) -> "Report":
    from gemcut import api

    return api.evaluate(
        files,
        reference,
        said["texts"],
        context=said["context"].split(","),
        chunks=said["chunks"],
        framing=said["framing"],
        caches=_caches(said["type_k"], said["type_v"]),
        floor=said["floor"],
        routing=said["routing"],
        tasks=said["tasks"],
        task_limit=said["task_limit"],
        speed_at=said["speed_context"] if said["speed"] else None,
        save_kld=said["save_kld"],
        base=said["kld_base"],
        threads=said["threads"],
        keep=not said["no_cache"],
        progress=progress,
        tell=say,
        command=("gemcut", *sys.argv[1:]),
    )


def _caches(keys: str | None, values: str | None) -> tuple[tuple[str, str], ...]:
    """Pairs of types: the first of the keys with the first of the values, and so on."""
    words = [(said or "f16").lower().split(",") for said in (keys, values)]
    k, v = ([word.strip() for word in each] for each in words)
    longest = max(len(k), len(v))
    k, v = (each * longest if len(each) == 1 else each for each in (k, v))
    if len(k) != len(v):
        raise UsageError(f"{len(k)} types of keys, {len(v)} of values: wanted as many, or one")
    return tuple(zip(k, v, strict=True)) if keys or values else ()


def _write(report: "Report", folder: Path) -> None:
    from gemcut.eval.report.folder import write_folder

    paths = write_folder(report, folder)
    say(f"wrote {paths[0]} and {len(paths) - 1} files beside it")
