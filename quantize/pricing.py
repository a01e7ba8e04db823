"""What it costs to write a tensor in some way: predicted loss, and seconds at every place."""

from collections.abc import Mapping
from dataclasses import dataclass

from gemcut.profile import Profile
from gemcut.quantize.choices import Way
from gemcut.roles import role_of
from gemcut.runtime.memory.ledger import Fixed
from gemcut.runtime.memory.tensors import Placed
from gemcut.runtime.placement.problem import Option
from gemcut.runtime.placement.workload import CHAT
from gemcut.runtime.speed.throughput import Prices, token_seconds
from gemcut.sensitivity import Sensitivity


@dataclass(frozen=True)
class Pricing:
    """Prices for one model on one machine.

    sensitivity: measured, or believed. shares: of each of the source's tensors, what a token reads.
    machine: None: types alone are chosen. needs: what a context takes on it.
    """

    sensitivity: Sensitivity
    shares: Mapping[str, float]
    machine: Profile | None
    needs: Fixed | None

    def option(self, way: Way, size: int) -> Option:
        """A way that takes so many bytes, as the program knows it."""
        seconds = self._seconds(way.type, size * self.shares[way.tensor])
        return Option(way.type, size, self._loss(way), seconds, bool(way.padded_to))

    def reading(self, stack: Placed) -> float:
        """Seconds, for each token that is written, by which a typical request's prompt takes longer
        if every expert of a stack on the host has a type: no card computes with it then."""
        if self.machine is None or self.needs is None:
            return 0.0
        prices = Prices(self.machine, self.needs, self.shares, CHAT.prompt)
        return prices.unstaged(stack) * prices.ubatches / CHAT.answer

    def runs(self, name: str) -> bool:
        """Whether the model computes with a tensor: blocks that only draft tokens do not count."""
        return self.shares[name] > 0 or role_of(name).is_lookup

    def _seconds(self, kind: str, active: float) -> tuple[float, ...]:
        """Of so many active bytes in a type, at each place."""
        if self.machine is None:
            return (0.0,)
        return tuple(token_seconds(place, kind, active) for place in self.machine.places)

    def _loss(self, way: Way) -> float:
        if way.key is None or way.error is None or not self.runs(way.tensor):
            return 0.0
        weight = self.sensitivity.groups[self.sensitivity.tensors[way.key].group]
        return weight.weight * way.error.mean
