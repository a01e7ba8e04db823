"""How fast gemcut says that a file will run, and what it holds, beside what was measured.

    PYTHONPATH=. python bench/prediction.py [FILE ...] [--depths 0,512] [--threads 2]

`gemcut bench` of every file, time after time, with a cache of its own: the machine's speeds are
measured anew, the first run of a file is predicted from them alone, and what the first runs took
corrects the prediction of the next. llama.cpp predicts nothing, so there is no peer.
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import GEMCUT, Cell, Table, demo_file, record

CLAIM = (
    "How fast a file will run is known before it runs: out of what its tensors read and compute."
)
COLUMNS = ("file", "", "runs before", "predicted", "measured", "predicted / measured")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--depths", default="0,512", help="tokens before")
    parser.add_argument("-t", "--threads", default="2")
    parser.add_argument("-r", "--repeats", default="3")
    parser.add_argument("--times", type=int, default=3, help="runs of every file")
    arguments = parser.parse_args()
    rows: list[list[Cell]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for path in arguments.files or [demo_file("q8_0")]:
            for before in range(arguments.times):
                rows += compared(path, before, arguments)
    table = Table(f"{arguments.threads} threads", COLUMNS, rows)
    print(table)
    record("-".join(["prediction", *(path.stem for path in arguments.files)]), CLAIM, [table])


def compared(path: Path, before: int, arguments: argparse.Namespace) -> Iterator[list[Cell]]:
    """Speeds at every depth, and the first time memory, which runs do not correct."""
    command = [*GEMCUT, "bench", str(path), "-d", arguments.depths, "-t", arguments.threads]
    command += ["-r", arguments.repeats, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    (run,) = json.loads(done.stdout)["runs"]
    for row in run["rows"]:
        for phase in ("prefill", "decode"):
            what = f"{phase} with {row['depth']} tokens before, tokens/s"
            yield [path.stem, what, before, *pair(row[phase], 1.0)]
    for place, found in run["memory"].items() if not before else ():
        yield [path.stem, f"memory of {place}, MB", before, *pair(found, 1e6)]


def pair(found: dict[str, float], unit: float) -> tuple[float, float, str]:
    """Predicted, measured, and their ratio."""
    said, seen = found["predicted"] / unit, found["measured"] / unit
    return said, seen, f"{said / seen:.2f}"


if __name__ == "__main__":
    main()
