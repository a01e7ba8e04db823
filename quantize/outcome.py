"""What a plan is made from, and what comes of it: points, each a choice of types and places."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gemcut.convert.model import Model
from gemcut.engine import ContextOptions
from gemcut.gguf_file import Value
from gemcut.plan import Plan
from gemcut.profile import Profile
from gemcut.quantize.request import Request
from gemcut.quantize.rescale import Rescale
from gemcut.quantize.statistics import Statistics
from gemcut.quantize.worth import Worth
from gemcut.runtime.placement.candidates import Loading
from gemcut.runtime.placement.workload import CHAT
from gemcut.sensitivity import Sensitivity

Describe = Callable[[Plan], Mapping[str, Value]]


@dataclass(frozen=True)
class Point:
    """One choice of types and places. Speeds are predicted tokens per second."""

    label: str
    size: int  # bytes of the tensors
    bpw: float
    kld: float  # predicted
    kld_se: float
    decode: float | None = None
    prefill: float | None = None
    cards: int = 0  # bytes of tensors and caches on cards
    host: int = 0
    below: int = 0  # tensors below the default range
    fits: bool = True  # the machine
    gap: float = 0.0

    @property
    def request(self) -> float | None:
        """Seconds that a typical request takes (`CHAT`); None: no machine is planned for."""
        if not (self.decode and self.prefill):
            return None
        return CHAT.seconds(self.prefill, self.decode)


@dataclass(frozen=True)
class Gain:
    """What a little more of something would buy, at the same price of time."""

    what: str
    point: Point


@dataclass(frozen=True)
class Outcome:
    """A plan, what was chosen, and what else there was."""

    plan: Plan
    chosen: Point
    frontier: tuple[Point, ...] = ()
    gains: tuple[Gain, ...] = ()
    notes: tuple[str, ...] = ()
    worth: Worth | None = None  # of types per expert, if they were asked for
    loading: Loading | None = None  # how weights lie on the host in a run; None: no machine

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON knows it."""
        document = {
            "plan": self.plan.to_dict(),
            "chosen": vars(self.chosen),
            "frontier": [vars(point) for point in self.frontier],
            "gains": [{"what": gain.what} | vars(gain.point) for gain in self.gains],
            "notes": list(self.notes),
        }
        if (worth := self.worth) is not None:
            said = {"ratio": worth.ratio, "worth_it": worth.enough}
            document["types_per_expert"] = vars(worth) | said
        return document


@dataclass(frozen=True)
class Task:
    """All that a plan is made from.

    sensitivity: None: priors. weighted: the tensors that there is importance for. machine: None:
    types alone are chosen. rescale: what finished files taught about predictions.
    """

    model: Model
    request: Request
    describe: Describe  # the metadata of the file that a plan makes
    sensitivity: Sensitivity | None = None
    weighted: Collection[str] = ()
    machine: Profile | None = None
    context: ContextOptions = ContextOptions(n_ctx=8192, n_outputs=1)
    rescale: Rescale = Rescale()
    imatrix: str | None = None  # digest of the importance
    statistics: Statistics | None = None  # of the importance
    loading: Loading | None = None  # how weights lie that speeds are of; None: as in the file

    @property
    def priced(self) -> Profile | None:
        """The machine with the speeds of weights that lie so."""
        if self.machine is None or self.loading is None:
            return self.machine
        return self.loading.priced(self.machine)
