"""gemcut beside llama.cpp's own tools: decode, prefill, time to the first token of one file.

    PEERS=$(bench/peers.sh) PYTHONPATH=. python bench/runtime.py [FILE ...] [--rounds 5] [--depth 0]

Both sides have the same threads, ubatch, flash attention and layouts of weights, and take turns, so
that what else the machine does falls on both. Of each the best round counts: other programs only
ever make one slower. The time to the first token is that of a whole process, `gemcut run -n 1`
beside `llama-cli -n 1`, with the file in the page cache.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter

from common import GEMCUT, demo_file, peer

from gemcut.engine import ContextOptions, default_threads
from gemcut.llama import Context, Model
from gemcut.runtime.speed.measured import speeds

PROMPT = "Write one sentence about the sea."
UBATCH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--no-first", action="store_true", help="not the time to the first token")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(ours(arguments.files[0], arguments)))
        return
    for path in arguments.files or [demo_file("q8_0")]:
        print(f"{path.name}, {arguments.threads} threads, depth {arguments.depth}")
        compare_speed(path, arguments)
        if not arguments.no_first:
            compare_first(path, arguments)


def compare_speed(path: Path, arguments: argparse.Namespace) -> None:
    """Rounds of both, in turns."""
    found: dict[str, list[dict[str, float]]] = {"gemcut": [], "llama-bench": []}
    for _ in range(arguments.rounds):
        found["llama-bench"].append(theirs(path, arguments))
        found["gemcut"].append(in_child(path, arguments))
    for phase in ("prefill", "decode"):
        mine, other = ([run[phase] for run in found[name]] for name in found)
        share = max(mine) / max(other)
        print(
            f"  {phase:8} {max(mine):8.2f} tokens/s, llama-bench {max(other):8.2f}: {share:.1%} "
            f"(medians {median(mine):.2f}, {median(other):.2f})"
        )


def in_child(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Ours in a process of its own, as llama-bench is."""
    command = [sys.executable, __file__, str(path), "--child"]
    for name in ("depth", "prompt", "generate", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def ours(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Tokens per second, one repeat after warming up."""
    deepest = arguments.depth + max(arguments.prompt, arguments.generate)
    options = ContextOptions(deepest, n_ubatch=UBATCH, threads=arguments.threads, n_outputs=1)
    with Model.load(path) as model, Context(model, options) as context:
        counts = arguments.prompt, arguments.generate
        return asdict(speeds(context, (arguments.depth,), *counts, repeats=1)[0])


def theirs(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """llama-bench's."""
    command = [peer("llama-bench"), "-m", path, "-p", arguments.prompt, "-n", arguments.generate]
    command += ["-d", arguments.depth, "-t", arguments.threads, "-ub", UBATCH, "-fa", 1]
    command += ["-r", 1, "-o", "json"]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True)
    runs = json.loads(done.stdout)
    return {("decode" if run["n_gen"] else "prefill"): run["avg_ts"] for run in runs}


def compare_first(path: Path, arguments: argparse.Namespace) -> None:
    """Seconds of a process that reads a prompt and writes one token."""
    context, threads = ["-c", "4096"], ["-t", str(arguments.threads)]
    asked = ["-p", PROMPT, "-n", "1", "--temp", "0", *context, *threads]
    mine = [*GEMCUT, "run", str(path), *asked]
    other = [str(peer("llama-cli")), "-m", str(path), *asked, "-st", "--simple-io", "-fa", "on"]
    times = [(seconds(mine), seconds(other)) for _ in range(arguments.rounds)]
    first, second = (min(column) for column in zip(*times, strict=True))
    print(
        f"  to the first token {first:.2f} s, llama-cli {second:.2f} s: {first - second:+.2f} s "
        f"(medians {median(a for a, _ in times):.2f}, {median(b for _, b in times):.2f})"
    )


def seconds(command: list[str]) -> float:
    """Wall seconds of a process. Raises SystemExit with what it said if it fails."""
    begun = perf_counter()
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = done.stderr.decode(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(command)} failed:\n{said}")
    return perf_counter() - begun


if __name__ == "__main__":
    main()
