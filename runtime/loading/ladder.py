"""The ladder: what is tried next when there was no memory for a run that was planned to fit.

Every step plans again with less of the place that ran out, first as it was but for ubatches and
experts on the host, then with keys and values of 8 bits, then with a smaller context. What the
user fixed stays. So a step is as good as any plan, and what it changed can be said.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gemcut.engine import Device
from gemcut.errors import BudgetError, OutOfMemory, PlanError
from gemcut.profile import HOST
from gemcut.runtime.placement.candidates import reduced
from gemcut.runtime.placement.given import Given
from gemcut.runtime.placement.held import Names, predicted
from gemcut.runtime.placement.placement import Placement
from gemcut.sizes import format_size

# Plans anew, with what is fixed and the bytes that places have less than the profile says.
Replan = Callable[[Given, Mapping[str, int]], Placement]

_STEP = 32  # of what a place was to hold, a step takes one part; the next one twice as much
_SMALL = "q8_0"


@dataclass
class Ladder:
    """The steps of one run.

    devices: tells what is free now.
    """

    plan: Replan
    given: Given
    names: Names
    devices: Callable[[], Sequence[Device]]
    taken: dict[str, int] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)
    _factor: int = 1

    def take(self, beyond: Mapping[str, int]) -> Placement:
        """The plan that leaves room for bytes beyond the formulas. Raises BudgetError."""
        self.taken |= {place: max(size, self.taken.get(place, 0)) for place, size in beyond.items()}
        return self.plan(self.given, self.taken)

    def lower(self, placement: Placement, shortage: OutOfMemory) -> Placement:
        """The next smaller plan.

        Raises:
            BudgetError: there is none; says what was tried.
        """
        place = self.names.place(shortage.device)
        self.tried.append(f"{summary(placement)}: {shortage}")
        last: BudgetError | PlanError | None = None
        for given in _rungs(self.given, placement):
            for taken in self._shrunk(placement, place):
                try:
                    found = self.plan(given, taken)
                except (BudgetError, PlanError) as error:
                    last = error
                    continue
                self.taken, self._factor = taken, 2 * self._factor
                return found
        raise BudgetError(
            f"out of memory, and nothing smaller is left to try ({last}). Tried: "
            + "; ".join(self.tried)
        )

    def _shrunk(self, placement: Placement, place: str) -> Iterator[dict[str, int]]:
        """What is to be left free: what is missing by the device's own word, or steps."""
        page = placement.ledger[place]
        room = next(each.room for each in placement.profile.places if each.name == place)
        step = max(1, sum(predicted(placement)[place].values()) // _STEP)
        before = self.taken.get(place, 0) + max(0, page["free"])
        lost = room - self._free(place, room)
        for size in dict.fromkeys((self._factor * step, step)):
            yield self.taken | {place: max(before + size, lost)}

    def _free(self, place: str, otherwise: int) -> int:
        """Bytes that a card has free by its own word; the host's is not one to go by."""
        if place == HOST:
            return otherwise
        name = self.names.devices[int(place.removeprefix("gpu"))]
        free = (device.free for device in self.devices() if device.name == name and device.free)
        return next(free, otherwise)


def _rungs(given: Given, placement: Placement) -> Iterator[Given]:
    """What is fixed on each rung: all but ubatches and places at first, less and less then."""
    context = placement.context
    kept = replace(
        given,
        n_ctx=context.n_ctx,
        type_k=context.type_k,
        type_v=context.type_v,
    )
    yield kept
    flat = context.flash_attention is False
    small = replace(
        kept,
        type_k=given.type_k or _SMALL,
        type_v=given.type_v or (context.type_v if flat else _SMALL),
    )
    if small != kept:
        yield small
    if given.n_ctx is None:
        yield from (replace(small, n_ctx=size) for size in reduced(given, context.n_ctx))


def changes(before: Placement, after: Placement) -> str:
    """What a step made smaller or moved, in words."""
    old, new, said = before.context, after.context, []
    if old.n_ubatch != new.n_ubatch:
        said.append(f"ubatch {old.n_ubatch} -> {new.n_ubatch}")
    if moved := _weights(after) - _weights(before):
        where = "more on the host" if moved > 0 else "less on the host"
        said.append(f"{format_size(abs(moved))} of weights {where}")
    if (old.type_k, old.type_v) != (new.type_k, new.type_v):
        said.append(f"keys and values in {new.type_k} and {new.type_v}")
    if old.n_ctx != new.n_ctx:
        said.append(f"context {old.n_ctx} -> {new.n_ctx} tokens")
    return ", ".join(said) or "weights divided in another way"


def summary(placement: Placement) -> str:
    """A plan in a few words."""
    context = placement.context
    return (
        f"context {context.n_ctx}, keys and values {context.type_k}/{context.type_v}, ubatch "
        f"{context.n_ubatch}, {format_size(_weights(placement))} of weights on the host"
    )


def _weights(placement: Placement) -> int:
    """Bytes of weights on the host."""
    page = placement.ledger.get(HOST, {})
    return sum(size for what, size in page.items() if what.startswith("weights"))
