"""Clocks that jump: a source from 1970 or 2035, and unfinished work from tomorrow or long ago."""

import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.commands import NAMED, Command, Results, Workshop, remove
from tests.faults.kills import CONTINUES, check_end
from tests.faults.running import contents
from tests.faults.sources import SOURCES, copied

PAST = 0.0  # what a machine without a clock's battery says
# Left by a kill before a state was first kept, or while it was.
NOTHING = (".lock", ".unfinished.partial")
FUTURE = datetime(2035, 1, 1, tzinfo=UTC).timestamp()


def jump_all(shop: Workshop) -> Results:
    """Every command with a source, killed while it writes and continued under another date."""
    for name, source in SOURCES.items():
        if NAMED[name] in shop.commands:
            yield name, _jumped(shop, NAMED[name], source)


def _jumped(shop: Workshop, command: Command, source: str) -> Counter[str]:
    """The clock was wrong when the source was written, and goes back or ahead before the resume."""
    wanted, usual = shop.whole(command)
    counts = Counter[str]()
    for of_source, of_work in ((PAST, FUTURE), (FUTURE, PAST)):
        place = shop.fresh()
        _, given = copied(shop.inputs[source], place.parent / "source")
        date(place.parent / "source", of_source)
        half = usual.changes // 2

        def halfway(changes: int, half=half) -> bool:
            return 0 < half <= changes

        done = shop.start(command, place, **{source: given}).end(halfway)
        killed = done.code != 0
        date(place.parent, of_work, but=place.parent / "source")
        left = [name for name in contents(place)[1] if not name.endswith(NOTHING)]
        done = shop.run(command, place, **{source: given})
        check_end(command, place, done, wanted, usual)
        resumed = any(word in done.err for word in CONTINUES)
        assert resumed or not (killed and left), f"{command.name}: begun anew: {left}"
        counts["resumed" if resumed else "finished"] += 1
        remove(place.parent)
    return counts


def date(folder: Path, seconds: float, but: Path | None = None) -> None:
    """Give all that lies in a folder another date."""
    for path in (folder, *folder.rglob("*")):
        if but is None or but not in (path, *path.parents):
            os.utime(path, (seconds, seconds))
