"""What the program is asked and what it answers: tensors with their options, limits, and choices.

Places are numbers, the host first and then the cards; bytes, seconds and nats throughout.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

HOST = 0  # the first place; the others are cards


@dataclass(frozen=True)
class Aim:
    """What is minimised: the sum of these, each times its price."""

    loss: float = 0.0
    seconds: float = 0.0  # with those of reading
    size: float = 0.0
    held: int | None = None  # or alone: the bytes at this place


LOSS, SECONDS, SIZE = Aim(loss=1), Aim(seconds=1), Aim(size=1)


@dataclass(frozen=True)
class Option:
    """One way to write a tensor."""

    name: str
    size: int  # bytes
    loss: float = 0.0
    seconds: tuple[float, ...] = (0.0,)  # for a token, at each place
    padded: bool = False
    hosted: bool = False  # the host alone computes with it: it lives there, and no card stages it
    reading: float = 0.0  # seconds by which prompts take longer then, for a token


@dataclass(frozen=True)
class Item:
    """A tensor, or several that go together, and what may become of it."""

    name: str
    options: tuple[Option, ...]
    block: int | None = None  # it lives where its block does; None: on the host
    roams: bool = False  # or on the host, wherever its block is
    copied: bool = False  # the host keeps a copy, out of which rows are looked up
    width: str | None = None  # the class whose padding its options are about
    parts: tuple["Item", ...] = ()  # written in its place, all of them or none
    places: frozenset[int] | None = None  # the only ones allowed
    largest: int | None = None  # bytes that cards stage of it at once; None: all of an option
    apart: bool = False  # if copied, the host keeps two where it lives there itself


@dataclass(frozen=True)
class Problem:
    """What is to be chosen, and within which bounds: bytes, seconds; infinity is none."""

    items: tuple[Item, ...]
    room: tuple[float, ...] = (math.inf,)  # of each place, for tensors and caches
    caches: tuple[int, ...] = ()  # bytes of each block's
    reads: tuple[tuple[float, ...], ...] = ()  # seconds for a token to read them, block by place
    # Bytes at least that every card stages of what the host has of the blocks; None: nothing.
    staged: int | None = None
    at_home: bool = True  # whether blocks may be at home on the host beside cards
    sync: float = 0.0  # seconds of an exchange between a card and the host
    overhead: float = 0.0  # seconds for a token, whatever is chosen
    size: float = math.inf
    seconds: float = math.inf
    loss: float = math.inf
    aim: Aim = LOSS
    rough: bool = False  # only options that a price of a byte could choose: nearly as good, sooner
    homes: tuple[tuple[int, ...], ...] = ()  # the only ones each block may have; none: any
    patience: float = 20.0  # seconds that looking for a solution may take

    @property
    def blocks(self) -> int:
        """Number of homes."""
        named = [item.block for item in self.items if item.block is not None]
        return max([len(self.caches), *(block + 1 for block in named)])


@dataclass(frozen=True)
class Chosen:
    """What became of one item."""

    option: Option
    place: int


@dataclass(frozen=True)
class Solution:
    """The choice for every item, or for its parts, and what it comes to."""

    chosen: Mapping[str, Chosen]
    homes: tuple[int, ...]  # of the blocks
    loss: float
    seconds: float
    size: int
    held: tuple[int, ...]  # bytes of tensors and caches at each place, without what is staged
    gap: float  # how much lower, relatively, the minimum may be
    reading: float = 0.0  # seconds by which prompts take longer, for a token
