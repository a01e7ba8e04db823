"""Ctrl-C and SIGTERM at any moment of any command: its exit code, no traceback, nothing lost."""

import random
import signal
from collections import Counter

from tests.faults.commands import Command, Results, Workshop, remove
from tests.faults.kills import check_end, check_seen, moment

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
OTHERS = (
    Command("plan", "plan {shards} --vram 2G --ram 8G -c 1k -o o.json", varying=("o.json",)),
    Command("inspect", "inspect {shards}"),
    Command("run", "run {q8_0} -p hello -n 24 -c 256 -t 1"),
    Command("demo", "demo --folder o -t 1"),
)


def signal_all(shop: Workshop, times: int, chance: random.Random) -> Results:
    """Send each command either signal so many times; those that can, go on to the same result."""
    for command in OTHERS:
        yield command.name, _ended(shop, command, times, chance)
    for command in shop.commands:
        yield command.name, _sent(shop, command, times, chance)


def _sent(shop: Workshop, command: Command, times: int, chance: random.Random) -> Counter[str]:
    wanted, usual = shop.whole(command)
    counts, passing = Counter[str](), dict[str, bytes]()
    for number in list(CODES) * times:
        place = shop.fresh()
        counts[_send(shop, command, place, number, chance, usual)] += 1
        check_seen(command, place, wanted, passing)
        check_end(command, place, shop.run(command, place), wanted, usual)
        remove(place.parent)
    return counts


def _ended(shop: Workshop, command: Command, times: int, chance: random.Random) -> Counter[str]:
    """The same for what need not go on."""
    place = shop.fresh()
    usual = shop.run(command, place)
    assert usual.code == 0, f"{command.name}: {usual.err}"
    counts = Counter[str]()
    for number in list(CODES) * times:
        place = shop.fresh()
        counts[_send(shop, command, place, number, chance, usual)] += 1
        remove(place.parent)
    return counts


def _send(shop, command, place, number, chance, usual) -> str:
    done = shop.start(command, place).end(moment(usual, chance), number)
    # Python has no handlers before it has begun, and gives them back before it ends.
    outside = done.code == -number and not done.err
    assert outside or done.code in (0, CODES[number]), f"{command.name}: {done.code}: {done.err}"
    assert "Traceback" not in done.err and "Aborted" not in done.err, done.err
    return "too late" if done.code == 0 else signal.Signals(number).name + " outside" * outside
