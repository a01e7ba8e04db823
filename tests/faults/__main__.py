"""Run the groups of faults, and print how often each came to what end."""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults import clocks, kills, places, signals, sources
from tests.faults.commands import COMMANDS, Results, Workshop
from tests.faults.running import load

Group = Callable[[Workshop, argparse.Namespace, random.Random], Counter[str] | Results]
PLACES = {
    "odd outputs": places.odd_outputs,
    "full disks": places.full_disks,
    "full caches": places.full_caches,
    "unwritable caches": places.unwritable_caches,
    "few descriptors": places.few_descriptors,
    "two at once": places.two_at_once,
    "removed folders": places.removed_folders,
    "clocks": clocks.jump_all,
}
GROUPS: dict[str, Group] = {
    "kills": lambda shop, asked, chance: kills.kill_all(shop, asked.kills, chance),
    "signals": lambda shop, asked, chance: signals.signal_all(shop, asked.signals, chance),
    "sources": lambda shop, asked, chance: sources.change_all(shop, chance),
}
GROUPS |= {name: lambda shop, *_, group=group: group(shop) for name, group in PLACES.items()}


def main() -> int:
    """Everything that was asked for; 1 if something did not hold."""
    told = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    told.add_argument("--kills", type=int, default=200)
    told.add_argument("--signals", type=int, default=3, help="of each kind, to each command")
    told.add_argument("--seed", type=int, default=0)
    told.add_argument("--folder", type=Path)
    told.add_argument("--commands", default="", help="these alone, between semicolons: a;b")
    told.add_argument("--only", type=_groups, default=[*GROUPS], help=f"of: {', '.join(GROUPS)}")
    asked = told.parse_args()
    with TemporaryDirectory(dir=asked.folder) as folder:
        names = [name for name in asked.commands.split(";") if name]
        chosen = tuple(each for each in COMMANDS if not names or each.name in names)
        found, wrong = _run(Workshop(Path(folder), chosen), asked)
    print(json.dumps(found, indent=1))
    return int(wrong)


def _groups(text: str) -> list[str]:
    names = text.split(",")
    if unknown := {*names} - {*GROUPS}:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return names


def _run(shop: Workshop, asked: argparse.Namespace) -> tuple[dict[str, object], bool]:
    load()
    shop.prepare()
    chance, wrong = random.Random(asked.seed), False
    found: dict[str, object] = {}
    for name in asked.only:
        began = time.monotonic()
        try:
            result = GROUPS[name](shop, asked, chance)
            found[name] = result if isinstance(result, Counter) else dict(_told(result))
        except AssertionError as error:
            found[name], wrong = f"WRONG: {error}", True
        line = f"{name}: {time.monotonic() - began:.0f} s: {found[name]}"
        print(line, file=sys.stderr, flush=True)
    return found, wrong


def _told(results: Results) -> Results:
    """Results, each of which is said at once: a group may take long."""
    for name, counts in results:
        print(f"    {name}: {dict(counts)}", file=sys.stderr, flush=True)
        yield name, counts


if __name__ == "__main__":
    sys.exit(main())
