"""How much memory does cutting take, whatever the model's size?

    PYTHONPATH=. python bench/memory.py [--types q4_0] [--layers 4] [--models 26B-A4B 120B-A15B]

Checkpoints of the true shapes are made as sparse files: the headers are real, the weights are holes
that read as zeros, and every byte goes through the mapping as it would from a disk. Each is cut in
a process of its own, whose peak resident memory (VmHWM) is printed beside that of a process that
only loads the libraries. With --layers only so many blocks are written, for want of disk or time;
the layout is always that of the whole model.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time

from common import CHECKPOINT, FOLDER, Cell, Table, record

from gemcut import api, ggml
from gemcut.convert.model import Model
from tests import checkpoints

CLAIM = "Cutting takes a few hundred megabytes of memory, whatever the model's size."
COLUMNS = ("model", "type", "source GB", "written GB", "CPU s", "peak memory MB")
MODELS = {"26B-A4B": checkpoints.REAL, "120B-A15B": checkpoints.LARGE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--types", nargs="+", default=["q4_0"])
    parser.add_argument("--layers", type=int)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        print(json.dumps(cut(**arguments.child)))
        return
    base = _in_child({"folder": None})
    print(f"interpreter and libraries: {base['memory'] / 1e6:.0f} MB")
    rows: list[list[Cell]] = []
    for name in arguments.models:
        folder = checkpoint(name)
        for kind in arguments.types:
            found = _in_child({"folder": str(folder), "kind": kind, "layers": arguments.layers})
            print(
                f"{name} ({found['source'] / 1e9:.0f} GB of source) to {kind}: "
                f"{found['written'] / 1e9:.1f} GB written in {found['seconds']:.0f} s, "
                f"opened in {found['opened']:.1f} s; peak {found['memory'] / 1e6:.0f} MB"
            )
            sizes = found["source"] / 1e9, found["written"] / 1e9
            rows.append([name, kind, *sizes, found["cpu"], found["memory"] / 1e6])
    blocks = f"{arguments.layers} blocks of each model" if arguments.layers else "whole models"
    note = f"Interpreter and libraries alone take {base['memory'] / 1e6:.0f} MB."
    record("memory", CLAIM, [Table(blocks, COLUMNS, rows)], [note])


def cut(folder: str | None, kind: str = "", layers: int | None = None) -> dict[str, float]:
    """Cut a checkpoint in this process; sizes in bytes. Without one, only load the libraries."""
    ggml.types()
    if folder is None:
        return {"memory": _peak()}
    start = perf_counter()
    whole = api.open_source(folder)
    opened = perf_counter() - start
    model = whole if layers is None else _first_blocks(whole, layers)
    output = FOLDER / "memory.gguf"
    target = api.Target(kind)
    wanted = api.planned_size(model, api.make_plan(model, target))
    free = shutil.disk_usage(FOLDER).free
    if wanted > free:
        raise SystemExit(f"{wanted / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    api.quantize_model(model, output, target)
    written = output.stat().st_size
    output.unlink()
    return {
        "source": 2 * whole.weights,
        "written": written,
        "opened": opened,
        "seconds": perf_counter() - start,
        "cpu": process_time(),
        "memory": _peak(),
    }


def _first_blocks(model: Model, layers: int) -> Model:
    names = tuple(f"blk.{layer}." for layer in range(layers))
    kept = [t for t in model.tensors if not t.name.startswith("blk.") or t.name.startswith(names)]
    return replace(model, tensors=tuple(kept))


def _peak() -> int:
    """The largest resident memory this process has had, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def _in_child(arguments: dict[str, object]) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def checkpoint(name: str) -> Path:
    folder = FOLDER / f"hollow-{name}"
    if not folder.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        shards = replace(MODELS[name], shards=24)
        checkpoints.build(folder, CHECKPOINT, shards, hollow=True)
    return folder


if __name__ == "__main__":
    main()
