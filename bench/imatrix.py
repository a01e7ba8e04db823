"""Hold gemcut's importance matrix against llama.cpp's own tool: numbers, time, and use.

    PEERS=$(bench/peers.sh) python bench/imatrix.py [MODEL.gguf --text TEXT --chunks 40 --runs 3]

Without a model: the demo's in BF16, on its held-out text. Whole processes take turns, since
another load on the machine would else meet one of them alone; llama-imatrix computes no perplexity
(--no-ppl), which gemcut does not do either. Printed are medians, the largest relative difference
of a sum (wanted below 1e-3), and whether llama-quantize makes with gemcut's file, which has entries
that llama.cpp does not write, the tensors that gemcut makes with it.
"""

import argparse
from pathlib import Path

import numpy as np
from common import (
    FOLDER,
    GEMCUT,
    Cell,
    Run,
    Table,
    demo_file,
    demo_text,
    measure,
    peer,
    record,
    typical,
)

from gemcut import api
from gemcut.gguf_file import GGUFFile
from gemcut.quantize.importance import importance_for
from gemcut.quantize.statistics import Statistics, read_statistics

CLAIM = (
    "`gemcut imatrix` collects what llama-imatrix does, and the tied embedding besides; files of "
    "either serve either."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("-c", "--n-ctx", type=int, default=512)
    parser.add_argument("-t", "--threads", type=int, default=1)
    arguments = parser.parse_args()
    model, text = arguments.model or demo_file("bf16"), arguments.text or demo_text()
    files = {name: FOLDER / f"imatrix-{name}.gguf" for name in ("gemcut", "llama.cpp")}
    shape = ["-c", f"{arguments.n_ctx}", "--chunks", f"{arguments.chunks}"]
    shape += ["-t", f"{arguments.threads}", "-o"]
    theirs = [str(peer("llama-imatrix")), "-m", str(model), "-f", str(text), "--no-ppl"]
    commands = {
        "gemcut": [*GEMCUT, "imatrix", str(model), "--text", str(text), *shape],
        "llama.cpp": [*theirs, "--process-output", *shape],
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(arguments.runs):
        for name, command in commands.items():
            runs[name].append(measure([*command, str(files[name])]))
    rows: list[list[Cell]] = []
    for name, done in runs.items():
        run = typical(done)
        rows.append([name, run.wall, run.cpu, run.memory / 1e6])
    title = f"{arguments.chunks} chunks of {arguments.n_ctx}, {arguments.threads} threads"
    taken = Table(title, ("program", "wall s", "CPU s", "memory MB"), rows)
    both = [read_statistics(files[name]) for name in commands]
    notes = *_compare(*both), _use(model, files["gemcut"])
    print(taken, *notes, sep="\n")
    record("imatrix", CLAIM, [taken], notes)


def _compare(ours: Statistics, theirs: Statistics) -> tuple[str, str]:
    """What differs, entry by entry, in words."""
    only = sorted(ours.entries.keys() ^ theirs.entries.keys())
    worst, counts = 0.0, 0.0
    for name in ours.entries.keys() & theirs.entries.keys():
        a, b = ours.entries[name], theirs.entries[name]
        sums = b.sums.reshape(a.sums.shape)
        relative = np.abs(a.sums - sums) / np.maximum(sums, np.finfo(np.float32).tiny)
        worst = max(worst, float(relative.max()))
        counts = max(counts, float(np.abs(a.counts - b.counts).max()))
    return (
        f"{len(ours.entries)} entries; in one of the two files only: {', '.join(only) or 'none'}",
        f"largest relative difference of a sum {worst:.1e}, of a count {counts:.0f} rows",
    )


def _use(model: Path, imatrix: Path) -> str:
    """Cut with the file, by llama.cpp and by gemcut in its way, and compare the tensors."""
    theirs, ours = FOLDER / "imatrix-theirs-q4_k_m.gguf", FOLDER / "imatrix-ours-q4_k_m.gguf"
    command = [str(peer("llama-quantize")), "--imatrix", str(imatrix)]
    measure([*command, str(model), str(theirs), "Q4_K_M", "1"])
    source = api.open_source(model)
    importance = importance_for(read_statistics(imatrix), source.tensors, ones=True)
    api.quantize_model(source, ours, api.Target("Q4_K_M"), importance, threads=1)
    with GGUFFile(ours) as a, GGUFFile(theirs) as b:
        same = [bytes(a.rows(name).data) == bytes(b.rows(name).data) for name in b.tensors]
    return f"Q4_K_M with gemcut's file: {sum(same)} of {len(same)} tensors are llama-quantize's"


if __name__ == "__main__":
    main()
