"""Convert a checkpoint with gemcut and with llama.cpp's converter: how fast, how much memory?

    PEERS=$(bench/peers.sh) python bench/convert.py [CHECKPOINT] --python PYTHON

PYTHON is one with torch and transformers, which llama.cpp's converter needs. Without CHECKPOINT a
random one of 3.3 GB is made: two blocks of Gemma 4 26B-A4B's true shapes, in the folder of the
benchmarks' files. Whole processes, start-up included; both read a checkpoint that is in the page
cache, and write to the same folder. The median of alternating runs is reported, with the smallest
and the largest.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from common import FOLDER, GEMCUT, Cell, Run, Table, measure, peer, record, typical
from converter import differences, digest
from shaped import random_checkpoint

from tests import checkpoints

RUNS = 3
CLAIM = (
    "`gemcut convert` writes the tensors of llama.cpp's converter, without torch, several times as "
    "fast and in a fraction of its memory."
)
COLUMNS = ("type", "program", "wall s", "CPU s", "source MB/s", "memory MB", "file GB", "differ")
NOTES = (
    "Both write the file and nothing beside it; llama.cpp's converter needs torch and "
    "transformers, which take gigabytes of disk themselves.",
)
TWO_BLOCKS = replace(checkpoints.REAL, layers=2, full_every=2, vocabulary=65536)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--python", required=True)
    parser.add_argument("--types", nargs="+", default=["bf16", "q8_0"])
    parser.add_argument("--runs", type=int, default=RUNS)
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    source = arguments.checkpoint or random_checkpoint("two-blocks-of-26b-a4b", TWO_BLOCKS)
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    print(f"{source}: {size / 1e9:.2f} GB, {os.cpu_count()} cores, {arguments.runs} runs each")
    rows: list[list[Cell]] = []
    for kind in arguments.types:
        rows += _compare(source, size, kind, arguments.python, arguments.runs)
    title = f"{source.name}, {size / 1e9:.2f} GB, the median of {arguments.runs}"
    record("convert", CLAIM, [Table(title, COLUMNS, rows)], NOTES)


def _compare(source: Path, size: int, kind: str, python: str, runs: int) -> list[list[Cell]]:
    ours, theirs = (FOLDER / f"{name}-{kind}.gguf" for name in ("ours", "theirs"))
    script = _converter()
    verb = ["convert"] if kind in ("bf16", "f16", "f32") else ["quantize"]
    commands = {
        "gemcut": [*GEMCUT, *verb, str(source), "-o", str(ours), "--type", kind],
        "llama.cpp": [
            python,
            str(script),
            str(source),
            "--outtype",
            kind,
            "--outfile",
            str(theirs),
        ],
    }
    paths = {"gemcut": ours, "llama.cpp": theirs}
    os.environ["PYTHONPATH"] = str(script.parent / "gguf-py")
    figures: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            paths[name].unlink(missing_ok=True)
            figures[name].append(measure(command))
    for name, done in figures.items():
        print(f"{kind:5} {name:10} {_figures(done, size)}")
    slow, fast = (typical(figures[name]).wall for name in ("llama.cpp", "gemcut"))
    differing = _differing(ours, theirs)
    print(f"{kind:5} gemcut is {slow / fast:.1f} times as fast; {differing} differ")
    written = {name: path.stat().st_size for name, path in paths.items()}
    ours.unlink()
    theirs.unlink()
    return [
        [kind, name, *_medians(done, size), written[name] / 1e9, differing]
        for name, done in figures.items()
    ]


def _medians(runs: list[Run], size: int) -> tuple[float, float, float, float]:
    """Wall and CPU seconds, MB of source a second, the most memory in MB."""
    run = typical(runs)
    return run.wall, run.cpu, size / run.wall / 1e6, run.memory / 1e6


def _differing(ours: Path, theirs: Path) -> str:
    """How many tensors differ."""
    lines = differences(digest(ours), digest(theirs))
    return f"{sum(line.startswith('tensor') for line in lines)} tensors"


def _figures(runs: list[Run], size: int) -> str:
    walls, (wall, _, rate, memory) = [run.wall for run in runs], _medians(runs, size)
    return (
        f"{wall:7.2f} s ({min(walls):.2f} to {max(walls):.2f}), {rate:6.0f} MB/s of source, "
        f"{memory:6.0f} MB resident"
    )


def _converter() -> Path:
    """llama.cpp's converter, in the sources that bench/peers.sh fetched."""
    version_folder = peer("llama-quantize").parents[2]
    return next(version_folder.glob("*/vendor/llama.cpp/convert_hf_to_gguf.py"))


if __name__ == "__main__":
    main()
