"""Cut a checkpoint with gemcut and with llama-quantize: same bytes? how long, how much memory?

    PEERS=$(bench/peers.sh) python bench/quantize.py [SOURCE] [--types Q4_K_M ...] [--runs 3]

gemcut starts from the checkpoint; llama-quantize from a BF16 GGUF, whose conversion is timed apart
(by gemcut: llama.cpp's converter needs torch). A GGUF as SOURCE is what both start from. Whole
processes, start-up included, in turn; the median of the runs with the smallest and the largest.
Where other programs are at work, the CPU time says more than the wall's.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from common import CHECKPOINT, FOLDER, GEMCUT, Cell, Run, Table, measure, peer, record, typical

from gemcut.gguf_file import GGUFFile

CLAIM = (
    "`gemcut quantize --type` makes llama-quantize's files, byte for byte, straight from the "
    "checkpoint, large ones in less time and a fraction of the memory; for a tiny one Python "
    "takes a second to start."
)
COLUMNS = ("type", "program", "wall s", "CPU s", "memory MB", "tensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("source", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--types", nargs="+", default=["Q8_0", "Q6_K", "Q4_K_M", "Q4_0", "IQ4_XS"])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("-t", "--threads", default="2")
    arguments = parser.parse_args()
    folder = FOLDER / "quantize"
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run has left
    folder.mkdir(parents=True)
    plain = arguments.source
    if plain.is_dir():
        plain = folder / "plain.gguf"
        source = str(arguments.source)
        made = measure([*GEMCUT, "convert", source, "-o", str(plain), "-t", arguments.threads])
        print(f"convert to BF16: {_figures([made])}")
    found: list[Sequence[Cell]] = []
    for kind in arguments.types:
        where = arguments.source, plain, folder
        found += _compare(*where, kind, arguments.threads, arguments.runs)
    shutil.rmtree(folder)
    name = "the demo's model" if arguments.source == CHECKPOINT else arguments.source.name
    title = f"{name}, {arguments.threads} threads, the median of {arguments.runs}"
    suffix = "" if arguments.source == CHECKPOINT else f"-{name}"
    record(f"quantize{suffix}", CLAIM, [Table(title, COLUMNS, found)])


def _compare(
    source: Path, plain: Path, folder: Path, kind: str, threads: str, runs: int
) -> Iterator[Sequence[Cell]]:
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    own = [*GEMCUT, "quantize", str(source), "-o", str(ours), "--type", kind, "-t", threads]
    other = [str(peer("llama-quantize")), str(plain), str(theirs), kind, threads]
    done: tuple[list[Run], list[Run]] = ([], [])
    for _ in range(runs):
        for command, path, found in ((own, ours, done[0]), (other, theirs, done[1])):
            path.unlink(missing_ok=True)
            found.append(measure(command))
    print(f"{kind:8} gemcut         {_figures(done[0])}")
    same = _same(ours, theirs)
    print(f"{'':8} llama-quantize {_figures(done[1])}; same tensors: {same}")
    mine, peers = map(typical, done)
    wall, cpu = peers.wall / mine.wall, mine.cpu / peers.cpu
    print(f"{'':8} gemcut is {wall:.2f} times as fast, with {cpu:.2f} times the CPU time")
    for name, run in (("gemcut", mine), ("llama-quantize", peers)):
        said = "the same bytes" if same else "differ"
        yield kind, name, run.wall, run.cpu, run.memory / 1e6, said


def _figures(runs: list[Run]) -> str:
    wall, cpu = (sorted(getattr(run, what) for run in runs) for what in ("wall", "cpu"))
    middle = typical(runs)
    return (
        f"{middle.wall:7.2f} s wall ({wall[0]:.2f} to {wall[-1]:.2f}) {middle.cpu:7.2f} s CPU "
        f"({cpu[0]:.2f} to {cpu[-1]:.2f}) {middle.memory / 1e6:7.0f} MB resident"
    )


def _same(first: Path, second: Path) -> bool:
    with GGUFFile(first) as a, GGUFFile(second) as b:
        return a.tensors.keys() == b.tensors.keys() and all(
            info.type == b.tensors[name].type and np.array_equal(a.rows(name), b.rows(name))
            for name, info in a.tensors.items()
        )


if __name__ == "__main__":
    main()
