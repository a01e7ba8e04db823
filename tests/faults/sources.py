"""Sources that are cut short, overwritten or touched while they are read, or before a resume."""

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.faults.commands import NAMED, Command, Results, Workshop, remove
from tests.faults.kills import check_end
from tests.faults.places import refused
from tests.faults.running import Ended, contents

Change = Callable[[Path], object]  # of a file of the source
SOURCES = {"convert, sharded": "shards", "quantize": "shards", "quantize a GGUF": "q8_0"}
SOURCES |= {"imatrix": "q8_0", "measure": "shards", "eval": "q4_0"}
_SAID = ("changed", "cut short", "truncated", "shorter", "unreadable", "NaN", "not within")


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def _overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(1 << 16))


CHANGES: dict[str, Change] = {"cut": _cut, "overwritten": _overwrite, "touched": os.utime}


def change_all(shop: Workshop, chance: random.Random) -> Results:
    """Every change to every source, in the middle, and between a kill and the next run."""
    for name, source in SOURCES.items():
        for how, change in CHANGES.items() if NAMED[name] in shop.commands else ():
            yield f"{name}, {how}", _changed(shop, NAMED[name], source, change, chance)


def _changed(
    shop: Workshop, command: Command, source: str, change: Change, chance: random.Random
) -> Counter[str]:
    wanted, usual = shop.whole(command)
    counts = Counter[str]()
    for meanwhile in (True, False):
        place = shop.fresh()
        file, given = copied(shop.inputs[source], place.parent / "source")
        inputs, due, acted = {source: given}, _somewhere(usual, chance), list[bool]()

        def act(changes: int, due=due, file=file, acted=acted, stays=meanwhile) -> bool:
            if due(changes) and not acted:
                acted.append(True)
                if stays:
                    change(file)
            return bool(acted) and not stays  # a kill

        done = shop.start(command, place, **inputs).end(act)
        if not meanwhile and acted:
            change(file)
            done = shop.run(command, place, **inputs)
        if done.code == 0:  # it was too late, or the source was read already
            seen = contents(place)[0]
            same = seen == wanted and (done.out == usual.out or not command.says)
            assert same or not meanwhile, f"{command.name}: mixed\n{done.out}"
            counts["finished"] += 1
        else:
            # A comparison says in its table why a file was not scored.
            said = replace(done, err=done.out + done.err) if command.says else done
            refused(command.name, said, *_SAID, "--restart")
            assert contents(place)[0] == {}, f"{command.name}: something is left"
            counts["refused"] += 1
        _again(shop, command, place, wanted, usual)
        remove(place.parent)
    return counts


def _somewhere(usual: Ended, chance: random.Random) -> Callable[[int], bool]:
    """When to act: in the first half of what it writes, or if that is nothing, of its time."""
    if usual.changes:
        number = chance.randint(1, max(1, usual.changes // 2))
        return lambda changes: changes >= number
    end = time.monotonic() + chance.uniform(0.2, 0.9) * usual.seconds
    return lambda _: time.monotonic() > end


def copied(path: Path, to: Path) -> tuple[Path, Path]:
    """A file of weights of a source's copy, and the copy."""
    if path.is_dir():
        shutil.copytree(path, to)
        return sorted(to.glob("*.safetensors"))[-1], to
    to.mkdir()
    return Path(shutil.copy2(path, to)), to / path.name


def _again(shop: Workshop, command: Command, place: Path, wanted, usual) -> None:
    """With a source that is whole, and begun anew, it is as ever."""
    again = command if command.says else replace(command, line=f"{command.line} --restart")
    check_end(again, place, shop.run(again, place), wanted, usual)
