"""The choice among the candidates of a run: the fastest request that fits, and why not more."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gemcut.errors import BudgetError, GemcutError
from gemcut.profile import HOST, Profile
from gemcut.runtime.memory.tensors import Placed
from gemcut.runtime.placement.candidates import (
    Candidate,
    cache_types,
    candidates,
    contexts,
    preferred,
    reduced,
)
from gemcut.runtime.placement.carried import carried_plan, context_of, places_of
from gemcut.runtime.placement.fitting import GAP, Fit, Fitter
from gemcut.runtime.placement.freedom import homes_of
from gemcut.runtime.placement.given import Given
from gemcut.runtime.placement.layout import layers_of, layout
from gemcut.runtime.placement.notes import notes
from gemcut.sizes import format_size

# How much slower a request may be for a larger context, or for the placement that a file carries.
SLOWER = 1.05
_FOREVER = 1e30  # seconds
_PROBES = 3  # smaller contexts that are tried where llama.cpp has to be asked each time

Types = tuple[str, str]


@dataclass(frozen=True)
class Choice:
    """What was chosen, where it comes from, and what there is to say of it."""

    fit: Fit
    origin: str  # "planned", "the file's plan", "given"
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Chooser:
    """Compares candidates."""

    fitter: Fitter
    given: Given

    @property
    def profile(self) -> Profile:
        """The machine."""
        return self.fitter.profile

    def choose(self) -> Choice:
        """The best run.

        Raises:
            BudgetError: nothing fits; says what would.
        """
        planned = self.planned() or self._alone() or self._fewer() or self._smaller()
        if planned is None:
            raise BudgetError(self._refusal())
        if self.given.places:
            return Choice(planned, "given", self._notes(planned))
        try:
            carried = self._carried(planned)
        except GemcutError as error:
            return Choice(planned, "planned", (*self._notes(planned), _unused(str(error))))
        found, origin = (carried, "the file's plan") if carried else (planned, "planned")
        return Choice(found, origin, self._notes(found))

    def planned(self) -> Fit | None:
        """The largest context that costs little, in the first types of the caches that fit."""
        sizes = self._contexts
        for types in cache_types(self.given):
            tried = self._fits(self._candidates(sizes[0], types), SLOWER)
            if first := _fastest(tried):
                return self._finished(self._larger(sizes[1:], first, tried))
        return None

    def _fits(
        self,
        candidates: Iterable[Candidate],
        slower: float = 1.0,
        most: float = math.inf,
        at_home: bool = True,
    ) -> list[Fit]:
        """What fits within so many seconds of a request, and is not so much slower than the best.

        The most hopeful first, so that few have to be placed.
        """
        bounds = {each: self.fitter.bound(each, at_home) for each in candidates}
        found: dict[Candidate, Fit] = {}
        for each in sorted(bounds, key=lambda each: bounds[each]):
            least = min((fit.cost for fit in found.values()), default=math.inf)
            least /= each.loading.effort(self.profile)
            if bounds[each] <= min(most, slower * least, _FOREVER):
                if fit := self.fitter.fit(each, at_home=at_home):
                    found[each] = fit
        return [found[each] for each in bounds if each in found and found[each].seconds <= most]

    def _larger(self, sizes: list[int], first: Fit, tried: list[Fit]) -> Fit:
        """The largest context that is not much slower than the smallest.

        What is too slow in the smallest is so in all others, so it is not tried again.
        """
        most = SLOWER * first.seconds
        good = _best_of_ubatches(tried)
        for size in reversed(self._hopeful(sizes, good, most, first.whole)):
            resized = [each.resized(size) for each in reversed(good)]
            if fit := _fastest(self._fits(resized, 1.0, most, not first.whole)):
                return fit
        return first

    def _hopeful(
        self, sizes: list[int], good: list[Candidate], most: float, whole: bool
    ) -> list[int]:
        """The contexts that may be fast enough: the larger, the slower."""
        fast, slow = 0, len(sizes) + 1
        while slow - fast > 1:
            middle = (fast + slow) // 2
            resized = (each.resized(sizes[middle - 1]) for each in good)
            if any(self.fitter.bound(each, not whole) <= most for each in resized):
                fast = middle
            else:
                slow = middle
        return sizes[:fast]

    def _finished(self, fit: Fit) -> Fit:
        """The same candidate, placed more exactly."""
        if fit.gap <= GAP:
            return fit
        found = self.fitter.fit(fit.candidate, GAP, at_home=not fit.whole)
        return min((one for one in (found, fit) if one), key=lambda one: one.seconds)

    def best(self, n_ctx: int, types: Types) -> Fit | None:
        """The fastest of a context, up to what nobody notices; None: none fits."""
        return _fastest(self._fits(self._candidates(n_ctx, types)))

    def _alone(self) -> Fit | None:
        """On the host, where cards are too small for anything."""
        if self.given.places or not self.profile.cards:
            return None
        return replace(self, fitter=self.fitter.alone).planned()

    def _fewer(self) -> Fit | None:
        """With the most layers on cards that fit, where only their shares were given."""
        if not self._unsaid:
            return None
        best, least, most = None, 0, self.fitter.contents.blocks + 1
        while least < most:  # `most` do not fit, fewer than `least` do
            count = (least + most) // 2
            given, cards = replace(self.given, gpu_layers=count), len(self.profile.cards)
            fitter = self.fitter.at(homes_of(given, self.fitter.contents.blocks + 1, cards))
            if found := replace(self, fitter=fitter).planned():
                best, least = found, count + 1
            else:
                most = count
        return best

    @property
    def _unsaid(self) -> bool:
        """Whether the cards' shares were given, but not of how many layers."""
        return bool(self.given.tensor_split) and self.given.gpu_layers is None

    @property
    def _contexts(self) -> list[int]:
        found = contexts(self.given, self.fitter.workload, self.fitter.contents.trained)
        return found if self.fitter.needs.by_formula else found[:1]

    def _candidates(self, n_ctx: int, types: Types) -> Iterable[Candidate]:
        most = self.fitter.workload.prompt if self.fitter.needs.by_formula else 1
        return candidates(self.given, self.profile, n_ctx, types, most)

    def _smaller(self) -> Fit | None:
        """With less context than was wanted, unless it was given."""
        return None if self.given.n_ctx else self._reduced(self._contexts[0])

    def _reduced(self, n_ctx: int) -> Fit | None:
        """The largest context below one that fits."""
        sizes = reduced(self.given, n_ctx)
        tried = sizes if self.fitter.needs.by_formula else sizes[:_PROBES]
        fits = (self.best(size, each) for size in tried for each in cache_types(self.given))
        return next((fit for fit in fits if fit), None)

    def _carried(self, planned: Fit) -> Fit | None:
        """With the places that the file carries, if they fit and are about as fast.

        Raises:
            GemcutError: they cannot be used; says why.
        """
        contents = self.fitter.contents
        if (plan := carried_plan(contents)) is None:
            return None
        placed = places_of(plan, contents, self.profile)
        places = {tensor.name: tensor.place for tensor in placed}
        layout(places, len(self.profile.cards))
        context = planned.candidate.context
        sizes = dict.fromkeys((context.n_ctx, self.given.n_ctx or context_of(plan).n_ctx))
        types = context.type_k, context.type_v
        fits = (self._at(placed, layers_of(places), size, types) for size in sizes)
        found = next((fit for fit in fits if fit), None)
        if found is None:
            raise BudgetError("there is no room for it")
        if found.seconds > SLOWER * planned.seconds:
            raise BudgetError(
                f"a request would take {found.seconds:.3g} s instead of {planned.seconds:.3g} s"
            )
        return found

    def _at(self, placed: list[Placed], homes: list[str], n_ctx: int, types: Types) -> Fit | None:
        fits = (self.fitter.fitted(c, placed, homes) for c in self._candidates(n_ctx, types))
        return _fastest(fit for fit in fits if fit.fits)

    def _notes(self, fit: Fit) -> tuple[str, ...]:
        return tuple(notes(self.fitter, self.given, fit))

    # --- refusing ---

    def _refusal(self) -> str:
        """Why nothing fits, and what would."""
        n_ctx, types = self._contexts[0], cache_types(self.given)[-1]
        candidate = next(iter(self._candidates(n_ctx, types)))
        lacking = self.fitter.missing(candidate)
        ways = ", or with ".join(self._ways(n_ctx))
        kept = f"a context of {n_ctx} tokens and keys and values in {types[0]}"
        text = f"{self.fitter.contents.name} does not fit this machine with {kept}: "
        if lacking:
            text += f"{format_size(lacking)} of memory are lacking ({self._room()})"
        else:
            text += f"a card would have to hold more than it can ({self._room()})"
        return f"{text}; it fits with {ways}" if ways else f"{text}: cut a smaller file"

    def _room(self) -> str:
        rooms = ((place.name, format_size(place.room)) for place in self.profile.places)
        return ", ".join(
            f"{'RAM' if name == HOST else name}: {size} not taken by others" for name, size in rooms
        )

    def _ways(self, n_ctx: int) -> list[str]:
        """What would fit."""
        ways = []
        if smaller := self._reduced(n_ctx):
            ways.append(f"-c {smaller.candidate.context.n_ctx}")
        if self.given.type_k or self.given.type_v:
            types = "q8_0", "f16" if self.given.flash_attention is False else "q8_0"
            if self.best(n_ctx, types):
                ways.append(f"-ctk {types[0]} -ctv {types[1]}")
        return ways


def _fastest(fits: Iterable[Fit]) -> Fit | None:
    """The fastest; of those that are nearly as fast the first."""
    found = list(fits)
    return preferred(found, lambda fit: fit.cost) if found else None


def _best_of_ubatches(tried: Sequence[Fit]) -> list[Candidate]:
    """Of each ubatch the best way to load, the largest ubatch first."""
    sizes = dict.fromkeys(fit.candidate.context.n_ubatch for fit in reversed(tried))
    alike = ([fit for fit in tried if fit.candidate.context.n_ubatch == size] for size in sizes)
    return [best.candidate for fits in alike if (best := _fastest(fits))]


def _unused(why: str) -> str:
    return f"the file carries a plan, which is not used: {why}"
