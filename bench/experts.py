"""Files with types per expert beside stock ones of as many bytes: decode and prefill on the CPU.

    PYTHONPATH=. python bench/experts.py [FILE [OTHER]] [--threads 2] [--rounds 5]

A stock file is written again with single experts of the same types; of two files of one model in
different types, the experts are taken from both in turn, and the two count by half. All are loaded
in one process and take turns, with and without ggml's rearranged weights. Of each the best round
counts: other programs only ever make one slower. One thread is timed by its own seconds.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from common import FOLDER, Cell, Table, demo_file, record

from gemcut.cores import default_threads
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.gguf_experts import expert_name, marked
from gemcut.gguf_file import GGUFFile, TensorInfo
from gemcut.gguf_writer import GGUFWriter
from gemcut.llama import Context, Model
from gemcut.sizes import format_size

CLAIM = "Experts with types of their own run about as fast on the CPU as llama.cpp's own stacks."
COLUMNS = ("weights", "phase", "types per expert, tokens/s", "stock, tokens/s", "relative")
PHASES = ("prefill", "decode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=16)
    arguments = parser.parse_args()
    stock = arguments.files[:2] or [demo_file("q4_k_m")]
    path = FOLDER / f"single-{'-'.join(each.stem for each in stock)}.gguf"
    if not path.exists():
        write(path, stock)
    names = " and ".join(each.name for each in stock)
    rows: list[list[Cell]] = []
    print(f"{names}, {format_size(path.stat().st_size)} per expert, {arguments.threads} threads")
    for repack in (False, True):
        best = measured([*stock, path], repack, arguments)
        for phase, (*others, ours) in zip(PHASES, best, strict=True):
            theirs = sum(others) / len(others)
            layout = "repacked" if repack else "as it is"
            print(
                f"  {layout:8} {phase:8} {1 / ours:8.2f} tokens/s, "
                f"stock {1 / theirs:8.2f}: {theirs / ours:.1%}"
            )
            rows.append([layout, phase, 1 / ours, 1 / theirs, f"{theirs / ours:.0%}"])
    size = format_size(path.stat().st_size)
    title = f"Experts of {names}, {size}, {arguments.threads} threads, best of {arguments.rounds}"
    record(f"experts-{stock[0].stem}", CLAIM, [Table(title, COLUMNS, rows)])


def write(path: Path, stock: Sequence[Path]) -> None:
    """Take everything from the first file, but its experts from all in turn, one by one."""
    with ExitStack() as opened:
        files = [opened.enter_context(GGUFFile(each)) for each in stock]
        tensors: list[TensorInfo] = []
        sources: list[tuple[GGUFFile, str, int, int]] = []
        for info in files[0].tensors.values():
            if len(info.shape) == 3 and info.name.endswith("_exps.weight"):
                count, rows, columns = info.shape
                for number, file in enumerate(islice(cycle(files), count)):
                    kind = file.tensors[info.name].type
                    name = expert_name(info.name, number)
                    tensors.append(TensorInfo(name, (rows, columns), kind))
                    sources.append((file, info.name, number * rows, (number + 1) * rows))
            else:
                tensors.append(info)
                sources.append((files[0], info.name, 0, info.rows))
        with GGUFWriter(path, marked(files[0].metadata), tensors) as writer:
            for info, (file, name, start, stop) in zip(tensors, sources, strict=True):
                writer.write(info.name, 0, np.array(file.rows(name, start, stop)))
                file.release()


def measured(
    paths: Sequence[Path], repack: bool, arguments: argparse.Namespace
) -> list[list[float]]:
    """The best seconds of a token, by phase and file."""
    clock = process_time if arguments.threads == 1 else perf_counter
    length = arguments.prompt + arguments.generate
    options = ContextOptions(length, n_ubatch=512, threads=arguments.threads, n_outputs=1)
    tokens = np.random.default_rng(0).integers(5, 1000, length)
    found: list[list[list[float]]] = [[[] for _ in paths] for _ in PHASES]
    with ExitStack() as opened:
        contexts = []
        for path in paths:
            load = ModelOptions(repack=repack, load_mode="none", devices=())
            model = opened.enter_context(Model.load(path, load))
            contexts.append(opened.enter_context(Context(model, options)))
        for _ in range(1 + arguments.rounds):
            for index, context in enumerate(contexts):
                begun = clock()
                context.decode(tokens[: arguments.prompt], outputs="last")
                read = clock()
                for place in range(arguments.prompt, length):
                    context.decode(tokens[place : place + 1], place)
                found[0][index].append((read - begun) / arguments.prompt)
                found[1][index].append((clock() - read) / arguments.generate)
    return [[min(times[1:]) for times in phase] for phase in found]  # the first warms up


if __name__ == "__main__":
    main()
