"""The plan that a file carries: the context it was made for, and the places it chose."""

from collections.abc import Mapping
from dataclasses import replace

from gemcut.engine import ContextOptions
from gemcut.errors import EngineError, PlanError
from gemcut.plan import METADATA_KEY, Plan
from gemcut.profile import Profile
from gemcut.runtime.memory.tensors import Placed
from gemcut.runtime.placement.contents import Contents


def carried_plan(contents: Contents) -> Plan | None:
    """The plan that a file carries, if it has one that says where tensors live.

    Raises:
        PlanError: it is damaged, or of another version.
    """
    value = contents.metadata.get(METADATA_KEY)
    if value is None:
        return None
    plan = Plan.from_json(str(value.data), f"{contents.name}: its plan")
    return plan if any(entry.device for entry in plan.tensors.values()) else None


def places_of(plan: Plan, contents: Contents, profile: Profile) -> list[Placed]:
    """The file's tensors where the plan has them.

    Raises:
        PlanError: the plan is about other tensors, or another number of cards.
    """
    places: Mapping[str, str | None] = {n: entry.device for n, entry in plan.tensors.items()}
    if {tensor.name for tensor in contents.tensors} != places.keys():
        raise PlanError("it is about other tensors than the file has")
    cards = _cards(plan)
    if cards != len(profile.cards):
        raise PlanError(f"it was made for {cards} cards, this machine has {len(profile.cards)}")
    known = {place.name for place in profile.places}
    return [_placed(tensor, places[tensor.name], known) for tensor in contents.tensors]


def context_of(plan: Plan) -> ContextOptions:
    """The context that a plan was made for.

    Raises:
        PlanError: it says nothing of one, or nonsense.
    """
    if not plan.context:
        raise PlanError("the plan says nothing of a context: plan for a machine (--vram, --ram)")
    try:
        return ContextOptions(**plan.context)
    except (TypeError, EngineError) as error:
        raise PlanError(f"the plan's context is none: {error}") from error


def _cards(plan: Plan) -> int:
    cards = plan.machine.get("cards")
    return len(cards) if isinstance(cards, (list, tuple)) else 0


def _placed(tensor: Placed, place: str | None, known: set[str]) -> Placed:
    if place not in known:
        raise PlanError(f"{tensor.name} is to live at {place}, which is not there")
    return replace(tensor, place=place)
