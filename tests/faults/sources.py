"""Sources that are cut short, overwritten or touched while they are read, or before a resume."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.faults.commands import NAMED, Command, Workshop, remove
from tests.faults.kills import check_end
from tests.faults.places import refused
from tests.faults.running import contents

Change = Callable[[Path], object]  # of a file of the source
_WHAT = {"convert, sharded": "shards", "quantize": "shards", "quantize a GGUF": "q8_0"}
_WHAT |= {"imatrix": "q8_0", "measure": "shards"}
_SAID = ("changed", "cut short", "truncated", "shorter", "unreadable", "NaN", "not within")


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def _overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(1 << 16))


CHANGES: dict[str, Change] = {"cut": _cut, "overwritten": _overwrite, "touched": os.utime}


def change_all(shop: Workshop, chance: random.Random) -> dict[str, Counter[str]]:
    """Every change to every source, in the middle, and between a kill and the next run."""
    return {
        f"{name}, {how}": _changed(shop, NAMED[name], source, change, chance)
        for name, source in _WHAT.items()
        if NAMED[name] in shop.commands
        for how, change in CHANGES.items()
    }


def _changed(
    shop: Workshop, command: Command, source: str, change: Change, chance: random.Random
) -> Counter[str]:
    wanted, usual = shop.whole(command)
    counts = Counter[str]()
    for meanwhile in (True, False):
        place = shop.fresh()
        file, given = _copied(shop.inputs[source], place.parent / "source")
        inputs = {source: given}
        limit = chance.randint(1, max(1, usual.changes // 2))
        acted: list[bool] = []

        def act(changes: int, limit=limit, file=file, acted=acted, stays=meanwhile) -> bool:
            if changes >= limit and not acted:
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
            assert seen == wanted or not meanwhile, f"{command.name}: mixed"
            counts["finished"] += 1
        else:
            refused(command.name, done, *_SAID, "--restart")
            assert contents(place)[0] == {}, f"{command.name}: something is left"
            counts["refused"] += 1
        _again(shop, command, place, source, wanted, usual)
        remove(place.parent)
    return counts


def _copied(path: Path, to: Path) -> tuple[Path, Path]:
    """A file of weights of a source's copy, and the copy."""
    if path.is_dir():
        shutil.copytree(path, to)
        return sorted(to.glob("*.safetensors"))[-1], to
    to.mkdir()
    return Path(shutil.copy2(path, to)), to / path.name


def _again(shop: Workshop, command: Command, place: Path, source: str, wanted, usual) -> None:
    """With a source that is whole, and begun anew, it is as ever."""
    line = f"{command.line} --restart"
    again = Command(command.name, line, varying=command.varying)
    check_end(again, place, shop.run(again, place), wanted, usual)
