"""Killed again and again, at any moment, a command comes to the result of an undisturbed run."""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.faults.commands import Command, Results, Workshop, remove
from tests.faults.running import Ended, contents

CONTINUES = ("continuing", "is used as it is there", "there already")


def kill_all(shop: Workshop, kills: int, chance: random.Random) -> Results:
    """Deal so many kills out to the commands; what happened to each."""
    total = sum(command.share for command in shop.commands)
    for command in shop.commands:
        if command.share:
            yield command.name, kill(shop, command, -(-kills * command.share // total), chance)


def kill(shop: Workshop, command: Command, kills: int, chance: random.Random) -> Counter[str]:
    """Kill one command that often: begun anew each time it came to its end."""
    wanted, usual = shop.whole(command)
    counts, passing = Counter[str](), dict[str, bytes]()
    while counts["kills"] < kills:
        place, interrupted = shop.fresh(), False
        while True:
            done = shop.start(command, place).end(moment(usual, chance))
            counts["resumed"] += interrupted and any(word in done.err for word in CONTINUES)
            check_seen(command, place, wanted, passing)
            if done.code != -signal.SIGKILL:
                break
            interrupted = True
            counts["kills"] += 1
        check_end(command, place, done, wanted, usual)
        counts["finished"] += 1
        counts["finished after kills"] += interrupted
        remove(place.parent)
    return counts


def moment(usual: Ended, chance: random.Random) -> Callable[[int], bool]:
    """When to kill: after some time, or when a change is seen in the folder."""
    if chance.random() < 0.5:
        end = time.monotonic() + chance.uniform(0, 1.3 * usual.seconds)
        return lambda _: time.monotonic() > end
    number = chance.randint(1, max(1, int(1.3 * usual.changes)))
    return lambda changes: changes >= number


def check_seen(
    command: Command, place: Path, wanted: dict[str, bytes], passing: dict[str, bytes]
) -> None:
    """Whatever has a final name is complete and right."""
    for name, data in contents(place)[0].items():
        if name in command.passing:
            assert passing.setdefault(name, data) == data, f"{command.name}: {name} differs"
        elif name in command.varying:
            assert data and (not name.endswith(".json") or json.loads(data)), name
        else:
            assert name in wanted, f"{command.name}: {name} is no result"
            assert data == wanted[name], f"{command.name}: {name} differs"


def check_end(
    command: Command, place: Path, done: Ended, wanted: dict[str, bytes], usual: Ended
) -> None:
    """It did as it does undisturbed, and left nothing else."""
    assert done.code == 0, f"{command.name}: {done.code}: {done.err}"
    seen, hidden = contents(place)
    assert hidden == [], f"{command.name}: left {hidden}"
    assert seen.keys() == wanted.keys(), f"{command.name}: {sorted(seen)}"
    if command.says:
        assert done.out == usual.out, f"{command.name}:\n{done.out}\nwanted\n{usual.out}"
