"""One candidate of a run, fitted onto a machine: the program places the tensors.

Every tensor has one option: its type. The seconds of an option at a place are those of a whole
request: of its answer token by token, and of its prompt ubatch by ubatch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gemcut.profile import HOST, Profile
from gemcut.runtime.memory.ledger import Fixed, ledger, rooms
from gemcut.runtime.memory.tensors import EMBEDDING, OUTPUT, Placed, is_routed, staged_bytes
from gemcut.runtime.placement.candidates import Candidate
from gemcut.runtime.placement.contents import Contents
from gemcut.runtime.placement.freedom import Freedom, Group
from gemcut.runtime.placement.needs import Needs
from gemcut.runtime.placement.problem import SECONDS, Aim, Item, Option, Problem, Solution
from gemcut.runtime.placement.program import bound, solve
from gemcut.runtime.placement.workload import Workload
from gemcut.runtime.speed.throughput import (
    Prices,
    Speed,
    decode_speed,
    prefill_speed,
    starting_seconds,
)

# Of a request's seconds, which predictions are off by far more: for comparing, and for what is run.
ROUGH, GAP = 1e-2, 1e-3
_SECONDS = 1.0  # that one program may take
_SLACK = 4096  # bytes: what a solver of floating point numbers may be off by


@dataclass(frozen=True)
class Fit:
    """A candidate with every tensor at its place, and what comes of it."""

    candidate: Candidate
    tensors: tuple[Placed, ...]
    homes: tuple[str, ...]  # of the layers, the output's last
    ledger: Mapping[str, Mapping[str, int]]
    prefill: Speed
    decode: Speed
    seconds: float  # of a request
    cost: float  # the same with the effort of loading, by which candidates are compared
    gap: float = 0.0  # how much fewer seconds, relatively, there may be at best

    @property
    def whole(self) -> bool:
        """Whether every block is at home on a card."""
        return HOST not in self.homes

    @property
    def fits(self) -> bool:
        """Whether no place holds more than it can."""
        return all(page["free"] >= 0 for page in self.ledger.values())


@dataclass(frozen=True)
class Fitter:
    """Fits candidates.

    taken: bytes at each place that are needed beyond the formulas.
    """

    contents: Contents
    profile: Profile
    freedom: Freedom
    workload: Workload
    needs: Needs
    taken: Mapping[str, int]

    @property
    def alone(self) -> "Fitter":
        """The host alone: cards are left empty."""
        return self.at(((0,),) * (self.contents.blocks + 1))

    def at(self, homes: tuple[tuple[int, ...], ...]) -> "Fitter":
        """The same with other places where each layer may be at home."""
        return replace(self, freedom=replace(self.freedom, homes=homes))

    def fit(self, candidate: Candidate, gap: float = ROUGH, at_home: bool = True) -> Fit | None:
        """The fastest placement of a candidate, up to a relative gap; None: it does not fit.

        Args:
            at_home: whether blocks may be at home on the host beside cards.

        Raises:
            PlanError, GGUFError, EngineError: see `Needs`.
        """
        patience = _SECONDS if gap == ROUGH else _SECONDS / 2
        problem = replace(self.problem(candidate), at_home=at_home, patience=patience)
        solution = solve(problem, gap)
        if solution is None:
            return None
        found = self.fitted(candidate, self._placed(solution), self._homes(solution))
        return replace(found, gap=solution.gap) if found.fits else None

    def bound(self, candidate: Candidate, at_home: bool = True) -> float:
        """Seconds that a request takes at least; infinity: the candidate does not fit. Raises as
        `fit` does."""
        problem = replace(self.problem(candidate), at_home=at_home)
        return math.inf if self._least(problem) > sum(problem.room) else bound(problem)

    def missing(self, candidate: Candidate) -> int:
        """Bytes that the host lacks, and cards do not have, for a candidate; 0: none, or cards
        alone lack them."""
        problem = self.problem(candidate)
        boundless = replace(problem, room=(float("inf"), *problem.room[1:]), aim=Aim(held=0))
        found = solve(boundless, ROUGH)
        least = found.held[0] if found else self._least(problem) - sum(problem.room[1:])
        return max(0, int(least - problem.room[0]))

    def fitted(self, candidate: Candidate, tensors: Sequence[Placed], homes: Sequence[str]) -> Fit:
        """A candidate with tensors at given places, whether they fit or not.

        Raises:
            PlanError: a place that the machine does not have.
        """
        needs, machine = self._needs(candidate), candidate.loading.priced(self.profile)
        tensors = self._lying(candidate, tensors)
        shares, work = self.contents.shares, self.workload
        prefill = prefill_speed(machine, needs, tensors, shares, work.prompt)
        decode = decode_speed(machine, needs, tensors, shares)
        seconds = work.prompt * prefill.seconds + work.answer * decode.seconds
        cost = seconds * candidate.loading.effort(self.profile)
        pages = self._ledger(needs, tensors)
        return Fit(candidate, tuple(tensors), tuple(homes), pages, prefill, decode, seconds, cost)

    def problem(self, candidate: Candidate) -> Problem:
        """The program of a candidate, with seconds of a request."""
        needs = self._needs(candidate)
        machine = candidate.loading.priced(self.profile)
        prices = Prices(machine, needs, self.contents.shares, self.workload.prompt)
        times = self.workload.answer + prices.ubatches
        places = tuple(place.name for place in machine.places)
        pinned = sum(self._seconds(prices, tensor) for tensor in self.freedom.pinned)
        reads = tuple(
            tuple(self._cache_seconds(prices, block, place) for place in places)
            for block in range(len(needs.caches))
        )
        return Problem(
            tuple(self._item(prices, group, places, candidate) for group in self.freedom.groups),
            tuple(self._rooms(needs, self._lying(candidate, self.freedom.pinned))),
            needs.caches,
            reads,
            self._staged(needs),
            homes=self.freedom.homes,
            sync=times * machine.sync,
            overhead=times * starting_seconds(machine, len(self.contents.tensors)) + pinned,
            aim=SECONDS,
            patience=_SECONDS,
        )

    def _needs(self, candidate: Candidate) -> Fixed:
        """What its context takes."""
        return self.needs(candidate.loading.computing(candidate.context, self.profile))

    @property
    def _used(self) -> bool:
        """Whether a layer may be on a card."""
        homes = self.freedom.homes
        return any(any(each) for each in homes) if homes else bool(self.profile.cards)

    def _lying(self, candidate: Candidate, tensors: Iterable[Placed]) -> list[Placed]:
        """The same tensors, with whether the host keeps another copy for looking rows up."""
        mapped = candidate.loading.mapped
        return [
            replace(each, copied=not (mapped and each.place == HOST) and self.contents.copied(each))
            for each in tensors
        ]

    def _rooms(self, needs: Fixed, pinned: Sequence[Placed]) -> list[float]:
        room = [float(size - _SLACK) for size in rooms(self.profile, needs)]
        for at, place in enumerate(self.profile.places):
            room[at] -= self.taken.get(place.name, 0)
            held = [tensor.size for tensor in pinned if tensor.place == place.name]
            room[at] -= sum(held)
            if at and needs.offloads:  # staged in the room that keys and values are unpacked in
                room[at] += needs.dequantized
            if at and not self._used:
                room[at] = max(0.0, room[at])  # an empty card computes nothing
        room[0] -= sum(tensor.size for tensor in pinned if tensor.copied)
        return room

    def _staged(self, needs: Fixed) -> int | None:
        if not needs.offloads or not self._used:
            return None
        return max(needs.dequantized, staged_bytes(self.freedom.pinned))

    def _item(
        self, prices: Prices, group: Group, places: Sequence[str], candidate: Candidate
    ) -> Item:
        seconds = tuple(
            sum(self._seconds(prices, replace(tensor, place=place)) for tensor in group.tensors)
            for place in places
        )
        size = sum(tensor.size for tensor in group.tensors)
        return Item(
            group.name,
            (Option("", size, seconds=seconds, hosted=any(each.single for each in group.tensors)),),
            block=group.layer,
            roams=group.roams,
            copied=group.copied,
            largest=staged_bytes(group.tensors),
            apart=not candidate.loading.mapped,
            places=group.places,
        )

    def _seconds(self, prices: Prices, tensor: Placed) -> float:
        """Of a tensor where it is, for a request."""
        reading = prices.ubatches * prices.ubatch(tensor)
        return reading + self.workload.answer * prices.token(tensor)

    def _cache_seconds(self, prices: Prices, block: int, place: str) -> float:
        reading = prices.ubatches * prices.attending(block, place)
        return reading + self.workload.answer * prices.reading(block, place)

    def _least(self, problem: Problem) -> int:
        """Bytes that have to be somewhere."""
        copies = sum(each.options[0].size for each in problem.items if each.copied and each.apart)
        return copies + sum(problem.caches) + sum(i.options[0].size for i in problem.items)

    def _homes(self, solution: Solution) -> tuple[str, ...]:
        names = [place.name for place in self.profile.places]
        found = [names[home] for home in solution.homes]
        return tuple(found[: self.contents.blocks + 1])

    def _placed(self, solution: Solution) -> list[Placed]:
        """All tensors at their places."""
        names, homes = [place.name for place in self.profile.places], self._homes(solution)
        found = {tensor.name: tensor for tensor in self.freedom.pinned}
        for group in self.freedom.groups:
            place = names[solution.chosen[group.name].place]
            found |= {each.name: replace(each, place=place) for each in group.tensors}
        layers = {tensor.name: tensor.block for tensor in found.values()}
        return [
            replace(found[name], home=None if layer is None else homes[layer])
            for name, layer in layers.items()
        ]

    def _ledger(self, needs: Fixed, tensors: Sequence[Placed]) -> dict[str, dict[str, int]]:
        pages = ledger(self.profile, needs, tensors, kind_of)
        for place, size in self.taken.items():
            if size and place in pages:
                pages[place] |= {"beyond formulas": size, "free": pages[place]["free"] - size}
        return pages


def kind_of(name: str) -> str:
    """What a tensor is counted under in the ledger."""
    if is_routed(name):
        return "experts"
    if name in (EMBEDDING, OUTPUT):
        return "embedding" if name == EMBEDDING else "output"
    return "all else"
