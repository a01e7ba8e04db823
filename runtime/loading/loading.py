"""Loading a planned run: accepted by llama.cpp first where it is close, made smaller where it must.

The ledger's formulas are upper bounds that are off by a few percent. Where less than that is left
somewhere, llama.cpp is asked, without loading a weight, before gigabytes are read; and where memory
is short all the same, the ladder goes down, and says each step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gemcut.closing import Closing
from gemcut.engine import Memory
from gemcut.errors import GGUFError, OutOfMemory
from gemcut.gguf_parts import GGUFParts, part_paths
from gemcut.kv_layout import kv_layout
from gemcut.llama import Context, Model, buffer_name, devices, probe
from gemcut.profile import HOST
from gemcut.runtime.loading.ladder import Ladder, Replan, changes
from gemcut.runtime.machine.profiles import card_names
from gemcut.runtime.placement.given import Given
from gemcut.runtime.placement.held import Names, Pages, beyond, resident, totals
from gemcut.runtime.placement.placement import Placement
from gemcut.runtime.speed.forecast import forecast_of
from gemcut.runtime.speed.records import Recorder, keep_memory

Tell = Callable[[str], None]
Progress = Callable[[float], None]

# What the formulas for computing may be off by: relatively, and in bytes. A place that has no more
# than that to spare is asked about.
DOUBT, LEAST_DOUBT = 0.03, 32 << 20
_TIMES = 3  # that a plan is made anew for what llama.cpp says


@dataclass
class Loaded(Closing):
    """A file at work. Closing it closes all of it.

    memory: what it takes by llama.cpp's log.
    held: the same place by place; of a mapped file what has to stay in memory.
    recorder: is told how long answers took, which corrects later predictions.
    """

    model: Model
    context: Context
    placement: Placement
    memory: Memory
    held: Pages
    recorder: Recorder

    def close(self) -> None:
        """Free the model and its context. Closing again does nothing."""
        self.model.close()


def open_parts(path: Path) -> GGUFParts:
    """The headers of a file that is to be run, of all its parts.

    Raises:
        GGUFError: not a GGUF, cut short, damaged, or a part is missing.
    """
    parts = GGUFParts(path)
    if parts.missing:
        absent = next(each for each in part_paths(path) if not each.exists())
        parts.close()
        raise GGUFError(f"{absent}: missing: {path.name} is one of {parts.count} parts")
    return parts


def load_run(
    file: GGUFParts,
    plan: Replan,
    given: Given,
    tell: Tell = lambda text: None,
    on_progress: Progress | None = None,
) -> Loaded:
    """Plan a run and load it, smaller if there is no memory for it.

    Args:
        file: what `open_parts` opened.
        plan: plans around what is given, with less memory at some places.
        tell: told each step down.
        on_progress: told the fraction loaded.

    Raises:
        BudgetError: no plan fits; says what was tried.
        EngineError: llama.cpp refuses the file or the options.
        UsageError, PlanError: as `plan` raises them.
    """
    ladder = Ladder(plan, given, _names(given), devices)
    placement = _accepted(file, ladder, tell)
    while True:
        try:
            return _load(file, placement, ladder.names, on_progress)
        except OutOfMemory as shortage:
            tell(str(shortage))
            smaller = ladder.lower(placement, shortage)
            tell(f"trying {changes(placement, smaller)}")
            placement = smaller


def accept(path: Path, placement: Placement, names: Names) -> dict[str, int]:
    """Ask llama.cpp, in a process of its own, whether a plan fits; nothing is loaded.

    Returns:
        Bytes that each place would need beyond the ledger, where it does not have them; {}: fits.

    Raises:
        EngineError: llama.cpp refuses the file or the options.
    """
    memory = probe(path, placement.model, placement.context)
    more = beyond(placement, memory, names)
    return {place: size for place, size in more.items() if size > _spare(placement, place)}


def _spare(placement: Placement, place: str) -> int:
    """Bytes that the ledger has for what the formulas do not know."""
    page = placement.ledger[place]
    return page["free"] + page.get("beyond formulas", 0)


def is_close(placement: Placement) -> bool:
    """Whether less is left at some place than the ledger may be off by."""
    return any(
        page["free"] < max(LEAST_DOUBT, DOUBT * page.get("compute", 0))
        for place, page in placement.ledger.items()
        if place == HOST or page.get("compute", 0)
    )


def _accepted(file: GGUFParts, ladder: Ladder, tell: Tell) -> Placement:
    """The first plan that llama.cpp accepts, or that there is no need to ask about."""
    placement = ladder.take({})
    named = file.metadata.get("general.architecture")
    unknown = kv_layout(str(named.data) if named else "", file.metadata) is None
    for _ in range(_TIMES):
        if not (unknown or is_close(placement)):
            break
        more = accept(_path(file), placement, ladder.names)
        if not more:
            break
        smaller = ladder.take(more)
        tell(f"llama.cpp needs more than was planned: {changes(placement, smaller)}")
        placement = smaller
    return placement


def _names(given: Given) -> Names:
    if given.devices is None:
        names = tuple(card_names())
    else:
        names = given.devices
    return Names(names, tuple(map(buffer_name, names)))


def _path(file: GGUFParts) -> Path:
    return part_paths(file.files[0].path)[0]


def _load(
    file: GGUFParts, placement: Placement, names: Names, on_progress: Progress | None
) -> Loaded:
    """Load what is planned, all of it or nothing. Raises EngineError."""
    model = Model.load(_path(file), placement.model, on_progress, file)
    try:
        context = Context(model, placement.context)
        memory = replace(context.memory, weights=model.memory.weights)
        found = resident(memory, names, placement)
        keep_memory(placement, totals(found))
        recorder = Recorder(forecast_of(file, placement))
    except BaseException:
        model.close()
        raise
    return Loaded(model, context, placement, memory, found, recorder)
