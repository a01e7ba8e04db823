"""What the benchmarks share: the demo's files, llama.cpp's tools, measured processes, results.

With RECORD=1 in the environment a benchmark writes what it found to bench/results, too, of which
bench/render.py makes docs/benchmarks.md.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import gemcut
from gemcut import api
from gemcut.demo.text import held_out_text
from gemcut.runtime.machine.inspection import inspect_machine

CHECKPOINT = Path(gemcut.__file__).parent / "demo" / "checkpoint"
FOLDER = Path("build/bench")
GEMCUT = [sys.executable, "-m", "gemcut"]
WAITER = Path(__file__).parent / "waiter.py"
RESULTS = Path(__file__).parent / "results"
SHOW = "--show"  # what was measured before, without measuring
_DIGITS = 6  # of a number in a result

# A number, an estimate with the ends of its 95 % interval, words, or nothing.
Cell = float | int | Sequence[float] | str | None


@dataclass(frozen=True)
class Run:
    """A finished process: wall seconds, CPU seconds, largest resident memory in bytes."""

    wall: float
    cpu: float
    memory: int


@dataclass(frozen=True)
class Table:
    """Some rows of a result; units stand in the columns' names."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __str__(self) -> str:
        """As Markdown; columns of numbers stand on the right."""
        columns = zip(*self.rows, strict=True)
        words = (any(isinstance(cell, str) for cell in column) for column in columns)
        ruler = "|".join("---" if each else "---:" for each in words)
        lines = [f"| {' | '.join(map(_shown, row))} |" for row in (self.columns, *self.rows)]
        title = f"{self.title}:\n\n" if self.title else ""
        return title + "\n".join([lines[0], f"|{ruler}|", *lines[1:]])


def record(
    name: str,
    claim: str,
    tables: Sequence[Table],
    notes: Sequence[str] = (),
    when: float | None = None,
) -> None:
    """Keep what was measured for docs/benchmarks.md, if RECORD=1 is in the environment.

    Args:
        claim: one sentence that the tables prove.
        when: seconds since 1970 at which it was measured; default: now.
    """
    if os.environ.get("RECORD") != "1":
        return
    made = [
        asdict(table) | {"rows": [list(map(_kept, row)) for row in table.rows]} for table in tables
    ]
    found = {
        "name": name,
        "claim": claim,
        "command": _command(),
        "date": (datetime.fromtimestamp(when) if when else datetime.now()).strftime("%Y-%m-%d"),
        **_surroundings(),
        "tables": made,
        "notes": list(notes),
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def keep(path: Path, result: Mapping[str, Any], same: Sequence[str]) -> None:
    """Add a result to a list in a JSON file, in the place of the one with the `same` values."""
    old = json.loads(path.read_text()) if path.exists() else []
    others = [one for one in old if any(one[key] != result[key] for key in same)]
    path.write_text(json.dumps([*others, result], indent=1) + "\n")


def _shown(cell: Cell) -> str:
    if cell is None or isinstance(cell, str):
        return cell or ""
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    middle, low, high = (f"{each:.2f}" if abs(cell[0]) >= 0.1 else f"{each:.2g}" for each in cell)
    return f"{middle} ({low}-{high})"


def _kept(cell: Cell) -> Any:
    """A cell for JSON; more digits than can be meant only make differences."""
    if isinstance(cell, float):
        return float(f"{cell:.{_DIGITS}g}")
    return cell if cell is None or isinstance(cell, int | str) else [_kept(end) for end in cell]


def _command() -> str:
    """How this script was called; whole paths are only this machine's."""
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    words = [word for word in words if word != SHOW]
    script = f"bench/{Path(sys.argv[0]).name}"
    tools = "PEERS=$(bench/peers.sh) " if "PEERS" in os.environ else ""
    return f"{tools}PYTHONPATH=. python {shlex.join([script, *words])}"


def _surroundings() -> dict[str, dict[str, Any]]:
    """What it was measured on, and with."""
    found = inspect_machine()
    system, _, python = found.system.partition(", Python ")
    cards = [device.description for device in found.devices if device.kind == "gpu"]
    machine = {"cpu": found.cpu, "cores": found.physical_cores, "ram_bytes": found.ram_total}
    versions = {name.replace("-", "_"): version for name, version in found.versions.items()}
    used = {name: versions[name] for name in ("gemcut", "llama_cpp_python", "gguf", "numpy")}
    peer = {"peer": f"llama.cpp of llama-cpp-python {versions['llama_cpp_python']}"}
    return {
        "machine": machine | {"os": system, "gpu": ", ".join(cards) or None},
        "versions": used | {"python": python} | peer,
    }


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


def typical(runs: Sequence[Run]) -> Run:
    """The medians of their seconds, and the most memory."""
    wall, cpu = (median(getattr(run, what) for run in runs) for what in ("wall", "cpu"))
    return Run(wall, cpu, max(run.memory for run in runs))


def measure(command: list[str]) -> Run:
    """Run a command to its end. Raises SystemExit with its output if it fails."""
    reading, writing = os.pipe()
    waiter = [sys.executable, "-I", "-S", str(WAITER), str(writing), *command]
    start = perf_counter()
    done = subprocess.run(
        waiter, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=[writing]
    )
    wall = perf_counter() - start
    os.close(writing)
    with os.fdopen(reading) as pipe:
        status, cpu, memory = json.loads(pipe.read() or "[1, 0, 0]")
    if status:
        raise SystemExit(
            f"{' '.join(command)} failed:\n{done.stdout.decode(errors='replace')[-2000:]}"
        )
    return Run(wall, cpu, memory)
