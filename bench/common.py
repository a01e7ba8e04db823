"""What the benchmarks share: the demo's files, llama.cpp's tools, and measured child processes."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import gemcut
from gemcut import api
from gemcut.demo.text import held_out_text

CHECKPOINT = Path(gemcut.__file__).parent / "demo" / "checkpoint"
FOLDER = Path("build/bench")
GEMCUT = [sys.executable, "-m", "gemcut"]


@dataclass(frozen=True)
class Run:
    """A finished process: wall seconds, CPU seconds, largest resident memory in bytes."""

    wall: float
    cpu: float
    memory: int


def peer(name: str) -> Path:
    """One of llama.cpp's tools, in the folder that bench/peers.sh prints."""
    path = Path(os.environ.get("PEERS", "")) / name
    if not path.is_file():
        raise SystemExit(
            f"no {name} in {path.parent}: PEERS=$(bench/peers.sh) python {sys.argv[0]}"
        )
    return path


def demo_file(kind: str) -> Path:
    """The demo's checkpoint as a GGUF of a type, made once."""
    path = FOLDER / f"demo-{kind}.gguf"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        api.quantize_model(api.open_source(CHECKPOINT), path, api.Target(kind))
    return path


def demo_text() -> Path:
    """The demo's held-out text as a file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "held-out.txt"
    path.write_text(held_out_text(), encoding="utf-8")
    return path


def measure(command: list[str]) -> Run:
    """Run a command to its end. Raises SystemExit with its output if it fails."""
    start = perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{output.decode(errors='replace')[-2000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return Run(perf_counter() - start, cpu, 1024 * usage.ru_maxrss)
