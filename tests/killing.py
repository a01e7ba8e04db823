"""Kill the writer again and again, at any moment, and let the next run go on: same bytes?

    python -m tests.killing FOLDER [KILLS] [SEED]

One process loads gemcut and forks a child for every attempt. A child is killed by a clock, or
kills itself at one of its calls to the system, half of a write done. Prints counts as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import gemcut
from gemcut import api
from gemcut.api import Target
from gemcut.quantize import writer

CHECKPOINT = Path(gemcut.__file__).parent / "demo" / "checkpoint"
CALLS = (
    "open",
    "pwrite",
    "fdatasync",
    "fsync",
    "ftruncate",
    "posix_fallocate",
    "replace",
    "unlink",
)
SPLITS = (None, 2_000_000)


class Die:
    """Kills this process at its n-th call to the system."""

    def __init__(self, at: int) -> None:
        self.left = at

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name, call):
        def deadly(*arguments, **options):
            self.left -= 1
            if self.left == 0:
                if name == "pwrite":
                    fd, data, offset = arguments
                    call(fd, data[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return deadly


def child(model, output: Path, split: int | None, die: Die, told: Path) -> None:
    """Write, in a process of its own; what is told goes into a file."""
    die.install()
    with open(told, "a") as lines:
        api.quantize_model(
            model,
            output,
            Target("Q8_0"),
            threads=2,
            split_size=split,
            tell=lambda line: print(line, file=lines, flush=True),
        )


def attempt(random_: random.Random, calls: int, seconds: float, *arguments) -> bool:
    """Fork a child, let it be killed; whether it came to its end."""
    by_clock = random_.random() < 0.5
    die = Die(-1 if by_clock else random_.randint(1, calls))
    pid = os.fork()
    if pid == 0:
        try:
            model, output, split, told = arguments
            child(model, output, split, die, told)
            os._exit(0)
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
    if by_clock:
        time.sleep(random_.uniform(0, 1.5 * seconds))
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status == 0


def contents(folder: Path) -> dict[str, bytes]:
    """What the finished files hold."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def kill(folder: Path, kills: int, seed: int) -> Counter[str]:
    """Kill that often; raises AssertionError if bytes differ, or half a result is to be seen."""
    writer.TILE, writer.RELEASE = 1 << 15, 1 << 19
    model, random_, counts = api.open_source(CHECKPOINT), random.Random(seed), Counter[str]()
    wanted, seconds, calls = {}, {}, {}
    for split in SPLITS:
        (folder / f"whole-{split}").mkdir(parents=True)
        start, die = time.monotonic(), Die(-1)
        pid = os.fork()
        if pid == 0:
            child(model, folder / f"whole-{split}" / "a.gguf", split, die, folder / "told")
            (folder / f"calls-{split}").write_text(str(-1 - die.left))
            os._exit(0)
        os.waitpid(pid, 0)
        wanted[split] = contents(folder / f"whole-{split}")
        seconds[split] = time.monotonic() - start
        calls[split] = int((folder / f"calls-{split}").read_text())
    while counts["killed"] < kills:
        split = SPLITS[counts["finished"] % len(SPLITS)]
        own = folder / f"{counts['finished']}"
        own.mkdir(exist_ok=True)
        limits = calls[split], seconds[split]
        done = attempt(random_, *limits, model, own / "a.gguf", split, folder / "told")
        found = contents(own)
        assert not done or [] == [p for p in own.iterdir() if p.name.startswith(".")]
        if done or min(wanted[split]) in found:  # a loader begins with the first file
            assert wanted[split] == found, (split, found.keys())
        counts["finished" if done else "killed"] += 1
        if done:
            for path in own.iterdir():
                path.unlink()
    counts["continued"] = (folder / "told").read_text().count("continuing")
    counts["damaged"] = (folder / "told").read_text().count("damaged")
    return counts


if __name__ == "__main__":
    where, how_often, seed, *_ = [*sys.argv[1:], "100", "0"][:3] + ["0"]
    print(json.dumps(kill(Path(where), int(how_often), int(seed))))
