"""What a comparison of six files takes, beside the runs of llama-perplexity that it replaces.

    PEERS=$(bench/peers.sh) PYTHONPATH=. python bench/eval.py [--subjects demo narrow wide]

Side by side in one run: `gemcut eval` of a reference and five files, with nothing kept from
before, against llama-perplexity once for the reference, which saves its logits, and once for each
file. Both in whole processes with the same threads. The subjects are the demo's model, and two of
random weights with a vocabulary of 262,144 tokens: a narrow one, and the first blocks of Gemma 4
26B-A4B. Both sides decode the same: the wider a model, the less there is to win.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
)
from shaped import Shape, fill, narrow, short

from gemcut.sizes import format_size

CLAIM = (
    "`gemcut eval` compares six files in one go, without a file of logits: what llama-perplexity "
    "does too takes about as long, on a fraction of the disk."
)
COLUMNS = ("model", "chunks", "program", "wall s", "CPU s", "memory MB", "disk MB", "relative time")
NOTES = (
    "narrow: vocabulary 262,144, width 640, 12 blocks; wide: the same vocabulary, two blocks of "
    "26B-A4B's width; both of random weights. Beside what llama-perplexity does, gemcut finds the "
    "noise floor on up to 8 chunks and compares routing on up to 4, however long the text is.",
)
# Of a token's logits, as in the demo's trained model: llama-perplexity passes over what is less
# likely than e^-16, so its time depends on it.
SPREAD = 3.7
PLAIN = ("--floor", "0", "--routing", "0")
TYPES = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")  # the first is the reference


@dataclass(frozen=True)
class Cost:
    """Processes one after the other: seconds, CPU seconds, the most memory, bytes on the disk."""

    wall: float
    cpu: float
    memory: int
    disk: int

    @classmethod
    def of(cls, runs: Sequence[Run], disk: int) -> "Cost":
        """The sum of some runs."""
        seconds = sum(run.wall for run in runs), sum(run.cpu for run in runs)
        return cls(*seconds, max(run.memory for run in runs), disk)

    def row(self) -> tuple[float, ...]:
        """As columns: seconds, CPU seconds, MB of memory, MB on the disk."""
        return self.wall, self.cpu, self.memory / 1e6, self.disk / 1e6

    def __str__(self) -> str:
        return (
            f"{self.wall:8.1f} s, CPU {self.cpu:8.1f} s, memory {format_size(self.memory):>9}, "
            f"disk {format_size(self.disk):>9}"
        )


def main() -> None:
    """Print the cost of both, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--chunks", type=int, nargs="+", default=[40, 8, 4], help="of each subject")
    parser.add_argument("-t", "--threads", type=int, default=2)
    arguments = parser.parse_args()
    rows: list[list[Cell]] = []
    for name, chunks in zip(arguments.subjects, arguments.chunks, strict=False):
        files = [SUBJECTS[name](kind) for kind in TYPES]
        costs = {
            "llama-perplexity": (theirs := others(files, chunks, arguments.threads)),
            "gemcut eval": own(files, chunks, arguments.threads),
            "the same without floor and routing": own(files, chunks, arguments.threads, PLAIN),
        }
        print(f"{name}: {len(files)} files, {chunks} chunks of 512, {arguments.threads} threads")
        for program, cost in costs.items():
            print(f"  {program:35}{cost}, relative time {cost.wall / theirs.wall:.2f}")
            rows.append([name, chunks, program, *cost.row(), cost.wall / theirs.wall])
    title = f"{len(TYPES)} files, {arguments.threads} threads"
    record("eval", CLAIM, [Table(title, COLUMNS, rows)], NOTES)


def own(files: Sequence[Path], chunks: int, threads: int, options: Sequence[str] = ()) -> Cost:
    """One comparison of all files, with a cache of its own."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        command = [*GEMCUT, "eval", *map(str, files[1:]), "--reference", str(files[0]), "--json"]
        command += ["--text", str(demo_text()), "--chunks", str(chunks), "-t", str(threads)]
        run = measure([*command, *options])
        del os.environ["XDG_CACHE_HOME"]
        kept = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        return Cost.of([run], kept)


def others(files: Sequence[Path], chunks: int, threads: int) -> Cost:
    """The reference's run, which saves its logits, then every file's."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base.kld"
        tool, how = str(peer("llama-perplexity")), ["-c", "512", "-t", str(threads), "-fa", "on"]
        how += ["--kl-divergence-base", str(base)]
        text = ["-f", str(demo_text()), "--chunks", str(chunks)]
        runs = [measure([tool, "-m", str(files[0]), *how, *text])]
        runs += [measure([tool, "-m", str(path), *how, "--kl-divergence"]) for path in files[1:]]
        return Cost.of(runs, base.stat().st_size)


def shaped(name: str, shape: Callable[[str, int], Shape]) -> Callable[[str], Path]:
    """A model of random weights in some type, made once."""

    def made(kind: str) -> Path:
        path = FOLDER / f"shaped-{name}-{kind}.gguf"
        if not path.exists():
            fill(path, *shape(kind, 0), SPREAD)
        return path

    return made


SUBJECTS = {
    "demo": demo_file,
    "narrow": shaped("narrow", narrow),
    "wide": shaped("26B-A4B-short", short),
}

if __name__ == "__main__":
    main()
