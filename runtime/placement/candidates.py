"""The runs that are compared: contexts, types of keys and values, ubatches, ways to load.

Only what the user left open is varied.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from gemcut.engine import ContextOptions
from gemcut.errors import UsageError
from gemcut.profile import Profile
from gemcut.runtime.placement.given import Given
from gemcut.runtime.placement.workload import Workload

UBATCHES = (512, 1024, 2048, 4096)
FIRST = 8192  # tokens of the smallest context that is offered
SMALLEST = 512  # that is fallen back to
_UNTRAINED = 32768  # tokens at most where nobody says what the model was made for
_BATCH = 2048  # tokens handed to llama.cpp at once, if a ubatch is not larger
# Of a copy out of pinned memory: how fast one out of a mapped file is. Reported: prompts were read
# at 166 tokens/s out of a mapping and at 379 out of pinned memory, nearly all of it copying.
_UNPINNED = 0.44
# What weights have to save of a request to be rearranged, if the file could just be mapped: every
# start reads and rearranges them again, and processes do not share them.
_COPYING = 1.05
# Nobody notices less, in seconds of a request: what takes less memory, or effort, is taken then.
ALIKE = 1.01

T = TypeVar("T")


@dataclass(frozen=True)
class Loading:
    """How weights lie on the host."""

    load_mode: str
    repack: bool  # in a layout of the CPU's own, unless they are pinned for a card
    no_host: bool  # not pinned
    op_offload: bool  # whether cards compute prompts with them

    @property
    def mapped(self) -> bool:
        """Whether tensors that are one in the file are one in memory, too."""
        return self.load_mode not in ("none", "direct_io")

    @property
    def offloads(self) -> bool:
        """Whether they can: not with a layout that cards do not read."""
        return self.op_offload and not (self.no_host and self.repack)

    def effort(self, profile: Profile) -> float:
        """What a request's seconds are taken times, to compare: a copy has to be worth it."""
        return _COPYING if self.mapped and self.rearranged(profile) else 1.0

    def computing(self, context: ContextOptions, profile: Profile) -> ContextOptions:
        """The context as its memory and speed are predicted: only cards that copies reach compute
        with the host's weights."""
        linked = any(card.link for card in profile.cards)
        return replace(context, op_offload=self.offloads and linked)

    def rearranged(self, profile: Profile) -> bool:
        """Whether the CPU has weights in its own layout: pinned memory of a card's goes first."""
        return self.repack and (self.no_host or not any(card.link for card in profile.cards))

    def priced(self, profile: Profile) -> Profile:
        """The profile with what products on the host, and copies to cards, take for weights that
        lie so."""
        host = profile.host.rearranging if self.rearranged(profile) else profile.host
        pinned = not self.mapped and not self.no_host
        share = (1.0 if pinned else _UNPINNED) if self.offloads else 0.0
        cards = tuple(replace(card, link=card.link * share) for card in profile.cards)
        return replace(profile, host=host, cards=cards)


@dataclass(frozen=True)
class Candidate:
    """One way to load a file and to make its context."""

    loading: Loading
    context: ContextOptions

    def resized(self, n_ctx: int) -> "Candidate":
        """The same with a larger context."""
        n_batch = max(self.context.n_batch or 0, min(_BATCH, n_ctx))
        return replace(self, context=replace(self.context, n_ctx=n_ctx, n_batch=n_batch))


def preferred(found: Sequence[T], cost: Callable[[T], float]) -> T:
    """The run that costs the least; of those that nearly do the first."""
    most = ALIKE * min(map(cost, found))
    return next(each for each in found if cost(each) <= most)


def contexts(given: Given, workload: Workload, trained: int | None) -> list[int]:
    """Contexts to offer, in tokens over all sequences, the smallest first: the given one; else
    those that hold the workload, up to what the model was made for."""
    if given.n_ctx is not None:
        return [given.n_ctx]
    most = trained or _UNTRAINED
    sizes = {most} | {FIRST << power for power in range(20) if FIRST << power < most}
    enough = [size for size in sorted(sizes) if size >= workload.tokens] or [most]
    return [size * given.n_seq for size in enough]


def reduced(given: Given, least: int) -> list[int]:
    """Contexts below the least that was wanted, the largest first."""
    halved = [least >> power for power in range(1, 20)]
    return [size for size in halved if size >= SMALLEST * given.n_seq]


def cache_types(given: Given) -> list[tuple[str, str]]:
    """Types of keys and values: 16 bits, and half of it where that does not fit.

    Raises:
        UsageError: values in a type that needs flash attention, without it.
    """
    flat = given.flash_attention is False
    if flat and given.type_v not in (None, "f32", "f16", "bf16"):
        raise UsageError(f"values in {given.type_v} need flash attention: leave out -fa off")
    small = "f16" if flat else "q8_0"
    found = [
        (given.type_k or "f16", given.type_v or "f16"),
        (given.type_k or "q8_0", given.type_v or small),
    ]
    return list(dict.fromkeys(found))


def candidates(
    given: Given, profile: Profile, n_ctx: int, types: tuple[str, str], prompt: int
) -> Iterator[Candidate]:
    """The candidates of one context, those that take less memory first.

    Args:
        prompt: its tokens; a larger ubatch is of no use.
    """
    for n_ubatch in _ubatches(given, n_ctx, prompt):
        for loading in loadings(given, profile):
            context = ContextOptions(
                n_ctx=n_ctx,
                n_batch=given.n_batch or max(n_ubatch, min(_BATCH, n_ctx)),
                n_ubatch=n_ubatch,
                n_seq=given.n_seq,
                threads=given.threads,
                flash_attention=given.flash_attention is not False,
                swa_full=given.swa_full,
                type_k=types[0],
                type_v=types[1],
                n_outputs=given.n_outputs or given.n_seq,
                op_offload=loading.op_offload,
                kv_unified=given.n_seq > 1,  # any mix of sequences is then one batch
            )
            yield Candidate(loading, context)


def _ubatches(given: Given, n_ctx: int, prompt: int) -> list[int]:
    most = min(n_ctx, given.n_batch or n_ctx)
    if given.n_ubatch is not None:
        return [min(given.n_ubatch, most)]
    found = [size for size in UBATCHES if size <= most and size < 2 * max(prompt, UBATCHES[0])]
    return found or [most]


def loadings(given: Given, profile: Profile) -> list[Loading]:
    """The ways to load that are compared, those that take less effort first.

    With cards that can compute with the host's weights: pinned for these, or not. Without: out of a
    mapped file unless cards take most of it. The CPU computes with weights as they are in the file,
    or in its own layout; what that changes nobody has measured of machines that are not here, so
    there they lie as llama.cpp has them by default.
    """
    layouts = (False, True) if profile.host.rearranged.by_type else (True,)
    if any(card.link for card in profile.cards):
        plain = given.no_host or False  # not pinned: cards read it only as it is in the file
        # Single experts have memory of their own, which would be rearranged beside pinned one.
        ways = [Loading("none", layouts[0] and not plain, plain, True)]
        ways += [Loading("none", repack, True, False) for repack in layouts]
        ways = [way for way in ways if given.op_offload in (None, way.op_offload)]
    else:
        mode = "none" if profile.cards else "mmap"
        ways = [Loading(mode, repack, False, True) for repack in layouts]
    said = {
        name: value
        for name in ("load_mode", "repack", "no_host", "op_offload")
        if (value := getattr(given, name)) is not None
    }
    return list(dict.fromkeys(replace(way, **said) for way in ways))
