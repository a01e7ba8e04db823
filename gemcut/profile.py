"""A machine's profile: what memory it has and how fast it reads weights, place by place.

The host is the place "cpu"; cards are "gpu0", "gpu1" and so on, in the order in which llama.cpp
takes them. Bytes, seconds, bytes/s and FLOP/s throughout. Where the numbers come from stands beside
them: they were measured, or taken from a data sheet, or assumed. A profile holds neither host names
nor paths, so it can be handed on, and it travels in the plans that were made for it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gemcut.artefact import (
    Reader,
    amount,
    each,
    fields,
    parse,
    read_text,
    sequence,
    share,
    string,
    write_text,
)
from gemcut.errors import ProfileError

VERSION = 2
HOST = "cpu"
SOURCES = ("measured", "data sheet", "assumed")
_CARD = re.compile(r"gpu(0|[1-9]\d?)")
_LONGEST = 200  # characters of a name or description
MOST_BYTES = 1 << 50


@dataclass(frozen=True)
class Kernels:
    """How fast weights that lie in one layout are multiplied, by their ggml type."""

    by_type: Mapping[str, float] = field(default_factory=dict)  # bytes/s, with one vector
    batches: Mapping[str, float] = field(default_factory=dict)  # FLOP/s, a matrix with a batch
    experts: Mapping[str, float] = field(default_factory=dict)  # of experts, each with its share


@dataclass(frozen=True)
class Processor:
    """What computes, with the memory it computes in."""

    name: str  # the place: "cpu", "gpu0", ...
    description: str  # "NVIDIA GeForce RTX 4070"
    memory: int  # bytes in all; of the host, what this process may use
    reserve: int  # bytes of it that are not ours: the system, a desktop, a driver and its context
    bandwidth: float  # bytes/s of weights that products with one vector read, of types not below
    by_type: Mapping[str, float] = field(default_factory=dict)  # bytes/s of encoded weights
    flops: float = 0.0  # FLOP/s of products with a whole batch; multiplying and adding count as two
    link: float = 0.0  # bytes/s from the host's (pinned) memory to it; 0 for the host itself
    source: str = "assumed"  # of the numbers: one of SOURCES
    batches: Mapping[str, float] = field(default_factory=dict)  # FLOP/s by type, as `flops`
    experts: Mapping[str, float] = field(default_factory=dict)  # of experts, each with its share
    # The same of types for which a CPU has a layout of its own, in that layout.
    rearranged: Kernels = field(default_factory=Kernels)
    # bytes/s of keys and values that a token attends to, by their type; of a CPU, which goes over
    # them for each head of queries, those of all heads.
    caches: Mapping[str, float] = field(default_factory=dict)
    attention: Mapping[str, float] = field(default_factory=dict)  # FLOP/s of a batch's, likewise

    @property
    def room(self) -> int:
        """Bytes that are ours."""
        return max(0, self.memory - self.reserve)

    def rate(self, kind: str) -> float:
        """Bytes/s at which it multiplies weights of a ggml type with one vector."""
        return self.by_type.get(kind.lower(), self.bandwidth)

    def cache_rate(self, kind: str) -> float:
        """Bytes/s at which it attends to keys and values of a ggml type with one token."""
        return self.caches.get(kind.lower()) or self.rate(kind)

    def attention_rate(self, kind: str) -> float:
        """FLOP/s at which a batch attends to keys and values of a ggml type."""
        return self.attention.get(kind.lower()) or self.flops

    def batch_rate(self, kind: str, routed: bool) -> float:
        """FLOP/s of products of weights of a ggml type, of routed experts or not, with a batch."""
        kind = kind.lower()
        known = self.experts if routed and kind in self.experts else self.batches
        return known.get(kind, self.flops)

    @property
    def rearranging(self) -> "Processor":
        """The same with weights in its own layouts."""
        other = self.rearranged
        return replace(
            self,
            by_type={**self.by_type, **other.by_type},
            batches={**self.batches, **other.batches},
            experts={**self.experts, **other.experts},
        )


@dataclass(frozen=True)
class Profile:
    """One machine: the host, its cards, and what a token costs beside its weights."""

    name: str
    host: Processor
    cards: tuple[Processor, ...] = ()
    operation: float = 0.0  # seconds that any operation costs, however small
    sync: float = 0.0  # seconds of a block on a card whose experts are on the host
    doubt: float = 0.3  # relative standard error of speeds that are predicted from it

    @property
    def places(self) -> tuple[Processor, ...]:
        """The host first, then the cards."""
        return (self.host, *self.cards)

    def with_cards(self, cards: tuple[Processor, ...]) -> "Profile":
        """The same host with these cards, which are named in their order."""
        named = (replace(card, name=f"gpu{index}") for index, card in enumerate(cards))
        return replace(self, cards=tuple(named))

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain data, as it stands in the file."""
        return {"version": VERSION} | asdict(self) | {"cards": [asdict(c) for c in self.cards]}

    def to_json(self) -> str:
        """Sorted JSON, one number a line, so that two profiles can be compared with `diff`."""
        return json.dumps(self.to_dict(), sort_keys=True, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, document: Any, where: str) -> "Profile":
        """The inverse of `to_dict`; `where` names the source in errors.

        Raises:
            ProfileError: not a profile, damaged, or of another version.
        """
        try:
            if not isinstance(document, dict) or "version" not in document:
                raise TypeError("it has no version")
            version = document["version"]
            if type(version) is not int or version != VERSION:
                raise ProfileError(
                    f"{where}: a machine profile of version {version!r:.20}, wanted {VERSION}: "
                    "measure again with `gemcut doctor --measure -o FILE`"
                )
            return _profile({k: v for k, v in document.items() if k != "version"})
        except (ValueError, TypeError) as error:
            raise ProfileError(f"{where}: not a machine profile: {error}") from error

    @classmethod
    def from_json(cls, text: str, where: str) -> "Profile":
        """A profile from its JSON. Raises ProfileError."""
        try:
            document = parse(text)
        except (ValueError, RecursionError) as error:
            raise ProfileError(f"{where}: not a machine profile: {error}") from error
        return cls.from_dict(document, where)

    @classmethod
    def read(cls, path: Path) -> "Profile":
        """Read a machine.json. Raises ProfileError."""
        return cls.from_json(read_text(path, "a machine profile", ProfileError), str(path))

    def write(self, path: Path) -> None:
        """Write a machine.json, complete or not at all. Raises OutputError."""
        write_text(path, self.to_json())


def _profile(document: Mapping[str, Any]) -> Profile:
    readers: dict[str, Reader[Any]] = {
        "name": _text,
        "host": _processor,
        "cards": lambda raw, what: tuple(_processor(one, what) for one in sequence(raw, what)),
        "operation": amount,
        "sync": amount,
        "doubt": share,
    }
    found = Profile(**fields(document, "the profile", readers))
    wanted = [HOST, *(f"gpu{index}" for index in range(len(found.cards)))]
    if (names := [place.name for place in found.places]) != wanted:
        raise ValueError(f"its places are {', '.join(names)}, wanted {', '.join(wanted)}")
    return found


def _processor(raw: Any, what: str) -> Processor:
    if isinstance(raw, dict):  # files from before these were measured apart lack them
        raw = {"batches": {}, "experts": {}, "rearranged": asdict(Kernels())} | raw
        raw = {"caches": {}, "attention": {}} | raw
    readers: dict[str, Reader[Any]] = {
        "name": _place,
        "description": _text,
        "memory": _bytes,
        "reserve": _bytes,
        "bandwidth": _rate,
        "by_type": _rates,
        "flops": _rate_or_none,
        "link": _rate_or_none,
        "source": _source,
        "batches": _rates,
        "experts": _rates,
        "rearranged": _kernels,
        "caches": _rates,
        "attention": _rates,
    }
    return Processor(**fields(raw, what, readers))


def _kernels(raw: Any, what: str) -> Kernels:
    names = ("by_type", "batches", "experts")
    return Kernels(**fields(raw, what, dict.fromkeys(names, _rates)))


def _rates(raw: Any, what: str) -> dict[str, float]:
    return each(_rate, raw, what)


def _text(raw: Any, what: str) -> str:
    if len(found := string(raw, what)) > _LONGEST or not found.isprintable():
        raise ValueError(f"{what} is {found!r:.40}, wanted one line of {_LONGEST} characters")
    return found


def _place(raw: Any, what: str) -> str:
    if (found := string(raw, what)) != HOST and not _CARD.fullmatch(found):
        raise ValueError(f"{what} is {found!r:.40}, wanted cpu, gpu0, gpu1 and so on")
    return found


def _bytes(raw: Any, what: str) -> int:
    if type(raw) is not int or not 0 <= raw <= MOST_BYTES:
        raise ValueError(f"{what} is {raw!r:.40}, wanted a number of bytes")
    return raw


def _rate(raw: Any, what: str) -> float:
    if (found := amount(raw, what)) < 1:  # of next to nothing times would not be numbers
        raise ValueError(f"{what} is {raw!r:.40}, wanted bytes per second")
    return found


def _rate_or_none(raw: Any, what: str) -> float:
    return _rate(raw, what) if amount(raw, what) else 0.0


def _source(raw: Any, what: str) -> str:
    if raw not in SOURCES:
        raise ValueError(f"{what} is {raw!r:.40}, wanted {', '.join(SOURCES)}")
    return str(raw)
