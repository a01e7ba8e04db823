"""gemcut beside llama.cpp's own tools: decode, prefill, time to the first token of one file.

    PEERS=$(bench/peers.sh) PYTHONPATH=. python bench/runtime.py [FILE ...] [--rounds 5] [--depth 0]

Both sides have the same threads, ubatch, flash attention and layouts of weights, and take turns,
either of them first, so that what else the machine does falls on both. How they compare is the
median of the rounds' ratios: a machine whose clock drifts does so in both halves of a round. With
--planned also ours with weights loaded as `gemcut run` plans it (rearranged for the CPU or not),
beside llama.cpp's default. The time to the first token is that of a whole process,
`gemcut run -n 1` beside `llama-cli -n 1`, with the file in the page cache and the machine's speeds
known.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter

from common import GEMCUT, Cell, Table, demo_file, peer, record

from gemcut import api
from gemcut.cores import default_threads
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.llama import Context, Model
from gemcut.runtime.placement.given import Given
from gemcut.runtime.speed.measured import speeds

CLAIM = "gemcut runs a file as fast as llama.cpp's own tools do: what it adds is a plan."
COLUMNS = ("file", "", "gemcut", "llama.cpp", "median", "llama.cpp's", "relative")
PROMPT = "Write one sentence about the sea."
UBATCH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1, help="in each process; small models: 5")
    parser.add_argument("--planned", action="store_true", help="also loaded as it is planned")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--no-first", action="store_true", help="not the time to the first token")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(ours(arguments.files[0], arguments)))
        return
    rows: list[Sequence[Cell]] = []
    for path in arguments.files or [demo_file("q8_0")]:
        print(f"{path.name}, {arguments.threads} threads, depth {arguments.depth}")
        rows += compare_speed(path, arguments)
        if not arguments.no_first:
            rows.append(compare_first(path, arguments))
    title = f"{arguments.threads} threads, depth {arguments.depth}, {arguments.rounds} rounds"
    record(
        "-".join(["runtime", *(path.stem for path in arguments.files)]),
        CLAIM,
        [Table(title, COLUMNS, rows)],
    )


def compare_speed(path: Path, arguments: argparse.Namespace) -> Iterator[Sequence[Cell]]:
    """Rounds of both, in turns; the best of each, the medians, and how they compare."""
    ways = ("alike", "planned") if arguments.planned else ("alike",)
    sides: dict[str, Callable[[], dict[str, float]]] = {
        way: partial(in_child, path, arguments, way) for way in ways
    }
    sides["llama-bench"] = partial(theirs, path, arguments)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(arguments.rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            found[name].append(sides[name]())
    for way, phase in product(ways, ("prefill", "decode")):
        mine, other = ([run[phase] for run in found[name]] for name in (way, "llama-bench"))
        share = median(own / their for own, their in zip(mine, other, strict=True))
        print(
            f"  {phase:8} {max(mine):8.2f} tokens/s, llama-bench {max(other):8.2f}: {share:.1%} "
            f"(medians {median(mine):.2f}, {median(other):.2f}) {way}"
        )
        what = f"{phase}{' as planned' * (way == 'planned')}, tokens/s"
        yield path.stem, what, max(mine), max(other), median(mine), median(other), f"{share:.0%}"


def in_child(path: Path, arguments: argparse.Namespace, way: str) -> dict[str, float]:
    """Ours in a process of its own, as llama-bench is."""
    command = [sys.executable, __file__, str(path), "--child", way]
    for name in ("depth", "prompt", "generate", "threads", "repeats"):
        command += [f"--{name}", str(getattr(arguments, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def ours(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Tokens per second, after warming up; in contexts as large as llama-bench makes them."""
    counts = {"prefill": (arguments.prompt, 0), "decode": (0, arguments.generate)}
    deepest = arguments.depth + max(arguments.prompt, arguments.generate)
    load, threads = ModelOptions(), arguments.threads
    if arguments.child == "planned":
        given = Given(n_ctx=deepest, n_ubatch=UBATCH, threads=threads)
        load = api.prepare(path, given).model
    found: dict[str, float] = {}
    with Model.load(path, load) as model:
        for phase, count in counts.items():
            size = arguments.depth + max(count)
            options = ContextOptions(size, n_ubatch=UBATCH, threads=threads, n_outputs=1)
            with Context(model, options) as context:
                (speed,) = speeds(context, (arguments.depth,), *count, arguments.repeats)
                found[phase] = getattr(speed, phase)
    return found


def theirs(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """llama-bench's."""
    command = [peer("llama-bench"), "-m", path, "-p", arguments.prompt, "-n", arguments.generate]
    command += ["-d", arguments.depth, "-t", arguments.threads, "-ub", UBATCH, "-fa", 1]
    command += ["-r", arguments.repeats, "-o", "json"]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True)
    runs = json.loads(done.stdout)
    return {("decode" if run["n_gen"] else "prefill"): run["avg_ts"] for run in runs}


def compare_first(path: Path, arguments: argparse.Namespace) -> Sequence[Cell]:
    """Seconds of a process that reads a prompt and writes one token."""
    context, threads = ["-c", "4096"], ["-t", str(arguments.threads)]
    asked = ["-p", PROMPT, "-n", "1", "--temp", "0", *context, *threads]
    mine = [*GEMCUT, "run", str(path), *asked]
    other = [str(peer("llama-cli")), "-m", str(path), *asked, "-st", "--simple-io", "-fa", "on"]
    seconds(mine)  # pages the file in, and measures the machine if nobody has
    times = [(seconds(mine), seconds(other)) for _ in range(arguments.rounds)]
    best = [min(column) for column in zip(*times, strict=True)]
    middle = [median(column) for column in zip(*times, strict=True)]
    off = f"{best[0] - best[1]:+.2f} s"
    print(
        f"  to the first token {best[0]:.2f} s, llama-cli {best[1]:.2f} s: {off} "
        f"(medians {middle[0]:.2f}, {middle[1]:.2f})"
    )
    return path.stem, "to the first token, s", *best, *middle, off


def seconds(command: list[str]) -> float:
    """Wall seconds of a process. Raises SystemExit with what it said if it fails."""
    # Python keeps what it compiles, as wherever a program is installed to be used.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = perf_counter()
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=kept)
    if done.returncode:
        said = done.stderr.decode(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(command)} failed:\n{said}")
    return perf_counter() - begun


if __name__ == "__main__":
    main()
