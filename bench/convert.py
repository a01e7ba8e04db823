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
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from common import CHECKPOINT, FOLDER, GEMCUT, Run, measure, peer

from tests import checkpoints

RUNS = 3
CONVERTER = Path(__file__).parent / "converter.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--python", required=True)
    parser.add_argument("--types", nargs="+", default=["bf16", "q8_0"])
    parser.add_argument("--runs", type=int, default=RUNS)
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    source = arguments.checkpoint or _random_checkpoint()
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    print(f"{source}: {size / 1e9:.2f} GB, {os.cpu_count()} cores, {arguments.runs} runs each")
    for kind in arguments.types:
        _compare(source, size, kind, arguments.python, arguments.runs)


def _compare(source: Path, size: int, kind: str, python: str, runs: int) -> None:
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
    slow, fast = (median(run.wall for run in figures[n]) for n in ("llama.cpp", "gemcut"))
    print(f"{kind:5} gemcut is {slow / fast:.1f} times as fast; {_differing(ours, theirs)} differ")
    ours.unlink()
    theirs.unlink()


def _differing(ours: Path, theirs: Path) -> str:
    """How many tensors differ, found by another process: a child starts with its parent's peak."""
    command = [sys.executable, str(CONVERTER), "compare", str(ours), str(theirs)]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return f"{sum(line.startswith('tensor') for line in lines)} tensors"


def _figures(runs: list[Run], size: int) -> str:
    walls = [run.wall for run in runs]
    return (
        f"{median(walls):7.2f} s ({min(walls):.2f} to {max(walls):.2f}), "
        f"{size / median(walls) / 1e6:6.0f} MB/s of source, "
        f"{max(run.memory for run in runs) / 1e6:6.0f} MB resident"
    )


def _converter() -> Path:
    """llama.cpp's converter, in the sources that bench/peers.sh fetched."""
    version_folder = peer("llama-quantize").parents[2]
    return next(version_folder.glob("*/vendor/llama.cpp/convert_hf_to_gguf.py"))


def _random_checkpoint() -> Path:
    folder = FOLDER / "two-blocks-of-26b-a4b"
    if not folder.exists():
        recipe = replace(checkpoints.REAL, layers=2, full_every=2, vocabulary=65536)
        unfinished = folder.with_name("unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        checkpoints.build(unfinished, CHECKPOINT, recipe, hollow=True)
        _fill(unfinished / "model.safetensors")
        unfinished.rename(folder)
    return folder


def _fill(path: Path) -> None:
    """Normally distributed BF16 weights instead of the holes of a hollow file."""
    random = np.random.default_rng(0)
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(8 + struct.unpack("<Q", file.read(8))[0])
        while (left := size - file.tell()) > 0:
            values = 0.02 * random.standard_normal(min(left // 2, 1 << 24), np.float32)
            file.write((values.view(np.uint32) >> 16).astype("<u2").data)


if __name__ == "__main__":
    main()
