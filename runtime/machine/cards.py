"""Machines by name: common cards, memory kinds and chips, as their makers' data sheets have them.

A name is one or several parts joined by "+": cards, and the host's memory with its channels, the
cores that compute and its size: "rtx-4070+ddr5-5600x2@8@64G". A chip of Apple's is a whole machine.
What nobody writes on a data sheet is a share of the peak, stated here; what comes of it carries the
doubt that it deserves.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from gemcut.errors import UsageError
from gemcut.profile import HOST, Processor, Profile
from gemcut.runtime.machine.datasheets import CHIPS, CORE, CORE_FLOPS, DESKTOP, HOSTS, WORKSTATION
from gemcut.sizes import parse_size

_GB, _TERA = 1e9, 1e12
# Shares of the peak. Products with one vector: hybrid runs of a 35B-A3B on DDR5-4800 came to 61 %
# of it with the waiting for the card counted in, so 65 % without. Batches: an RTX 3090 that
# computed all of gpt-oss-120b's prompt reached 47 % of its matrix units.
CARD_SHARE, HOST_SHARE, BATCH_SHARE, LINK_SHARE = 0.65, 0.65, 0.45, 0.8
# PCIe: bytes/s of a lane, by generation.
_LANE = {3: 0.985 * _GB, 4: 1.969 * _GB, 5: 3.938 * _GB}
# 330 MiB of a CUDA context, and about as much for the desktop that most cards show.
CARD_RESERVE = 700 << 20
HOST_RESERVE = 4 << 30  # an operating system with a desktop and a browser
OPERATION = 2e-6  # seconds: to start a card's kernel, or to wait for a CPU's threads
SYNC = 2e-5
DOUBT = 0.3  # shares of the peak range from 0.5 to 0.8 over cards, types and models
_DEFAULT_HOST = "ddr4-3200x2"
_DEFAULT_CORES, _DEFAULT_RAM = 8, 32 << 30
_MOST_CARDS = 16

_HOST_NAME = re.compile(r"((?:lp)?ddr\dx?)(\d{4,5})(?:x(\d))?")


@dataclass(frozen=True)
class Card:
    """A card's data sheet."""

    name: str
    description: str
    memory: int  # bytes
    bandwidth: float  # bytes/s
    link: float  # bytes/s of its PCIe connector
    flops: float  # FLOP/s, FP16

    def processor(self, place: str) -> Processor:
        """What it does in practice."""
        return Processor(
            name=place,
            description=self.description,
            memory=self.memory,
            reserve=CARD_RESERVE,
            bandwidth=CARD_SHARE * self.bandwidth,
            flops=BATCH_SHARE * self.flops,
            link=LINK_SHARE * self.link,
            source="data sheet",
        )


def named(spec: str) -> Profile:
    """The profile of a machine by name: "rtx-4070", "rtx-3090+rtx-3060+ddr5-5600", "m3-max@64G".

    Of memory "ddr5-5600x2@8@64G" are two channels of 64 bits (the default), the cores that compute
    (8), and its size (32 GiB). Without any, DDR4-3200 is assumed.

    Raises:
        UsageError: a name that is not known, or parts that do not go together.
    """
    words = [part.strip() for part in spec.split("+")]
    if len(words) == 1 and _squeezed(words[0].partition("@")[0]) in _chips():
        return _chip_profile(words[0])
    cards, hosts = [], []
    for word in words:
        if card := _cards().get(_squeezed(word)):
            cards.append(card)
        else:
            hosts.append(_host(word))
    if len(hosts) > 1 or len(cards) > _MOST_CARDS:
        raise UsageError(
            f"{spec!r:.80}: {len(cards)} cards and {len(hosts)} kinds of memory, wanted at most "
            f"{_MOST_CARDS} and one"
        )
    host = hosts[0] if hosts else replace(_host(_DEFAULT_HOST), source="assumed")
    sync = SYNC if cards else 0.0
    profile = Profile(spec.strip().lower(), host, (), OPERATION, sync, DOUBT)
    return profile.with_cards(tuple(card.processor("") for card in cards))


def slowest(memory: int, place: str) -> Processor:
    """The slowest known card with at least so much memory, of which it has just that; assumed.

    Raises:
        UsageError: no card has so much.
    """
    # Cards of workstations only for what no other holds: fast memory is not common in them.
    for line in (DESKTOP, WORKSTATION):
        if large := [card for card in _read(line) if card.memory >= memory]:
            card = min(large, key=lambda card: card.bandwidth)
            description = f"a card like {card.description}"
            found = card.processor(place)
            return replace(found, memory=memory, description=description, source="assumed")
    most = max(_cards().values(), key=lambda card: card.memory)
    raise UsageError(
        f"no known card has {memory} bytes of memory; the largest, {most.description}, has "
        f"{most.memory}: give several (--vram A,B)"
    )


def known_names() -> list[str]:
    """Every name: cards, chips, and kinds of memory."""
    kinds = [f"{kind}-{speed}" for kind, speeds in HOSTS.items() for speed in speeds]
    return [*(card.name for card in _cards().values()), *_chips().values(), *kinds]


@cache
def _cards() -> dict[str, Card]:
    return {_squeezed(card.name): card for card in (*_read(DESKTOP), *_read(WORKSTATION))}


@cache
def _chips() -> dict[str, str]:
    return {_squeezed(name): name for name in CHIPS}


def _squeezed(name: str) -> str:
    """A name however it is spelled: "RTX 4070" and "rtx4070" are one."""
    return re.sub(r"[-_ ]", "", name.lower())


def _read(table: str) -> Iterable[Card]:
    """The cards of a table of `datasheets`."""
    for line in table.strip().splitlines():
        name, memory, bandwidth, generation, lanes, flops, description = line.split(maxsplit=6)
        link = int(lanes) * _LANE[int(generation)]
        sizes = int(memory) << 30, float(bandwidth) * _GB, link, float(flops) * _TERA
        yield Card(name, description, *sizes)


def _host(word: str) -> Processor:
    """The host of "ddr5-5600x2@8@64G"."""
    name, *options = word.split("@")
    match = _HOST_NAME.fullmatch(_squeezed(name))
    channels = int(match[3] or 2) if match else 0
    if match is None or int(match[2]) not in HOSTS.get(match[1], ()):
        near = [n for n in known_names() if match and n.startswith(f"{match[1]}-")]
        raise UsageError(f"{word!r:.80} is not known; wanted {', '.join(near or known_names())}")
    if channels not in (1, 2, 4, 8):
        raise UsageError(f"{word!r:.80}: {channels} channels of memory, wanted x1, x2, x4 or x8")
    cores, memory = _options(word, options)
    cores = cores or _DEFAULT_CORES
    return _processor(
        f"{cores} cores, {match[1].upper()}-{match[2]} x{channels}",
        memory or _DEFAULT_RAM,
        channels * 8 * int(match[2]) * 1e6,  # a channel is 8 bytes wide
        cores,
    )


def _processor(description: str, memory: int, bandwidth: float, cores: int) -> Processor:
    """A host whose cores are fed by this memory: the slower of the two decides, type by type."""
    fed = HOST_SHARE * bandwidth
    return Processor(
        name=HOST,
        description=description,
        memory=memory,
        reserve=min(HOST_RESERVE, memory),
        bandwidth=fed,
        by_type={name: min(fed, cores * rate * _GB) for name, rate in CORE.items()},
        flops=cores * CORE_FLOPS,
        source="data sheet",
    )


def _options(word: str, options: list[str]) -> tuple[int | None, int | None]:
    """Cores and bytes: what stands behind an "@" is a plain number, or a size with its unit."""
    cores: int | None = None
    memory: int | None = None
    for option in options:
        if option.isascii() and option.isdecimal() and len(option) < 4 and cores is None:
            cores = int(option)
        elif memory is None:
            memory = parse_size(option)
        else:
            raise UsageError(f"{word!r:.80}: one size of memory and one number of cores at most")
    if cores == 0 or (memory is not None and memory < 1 << 30):
        raise UsageError(f"{word!r:.80}: wanted 1 core and 1 GiB of memory at least")
    return cores, memory


def _chip_profile(word: str) -> Profile:
    """A chip whose graphics unit computes in the host's memory: each gets a share of it."""
    name, *options = word.split("@")
    chip = _chips()[_squeezed(name)]
    gigabytes, bandwidth, flops, cores = CHIPS[chip]
    wanted, size = _options(word, options)
    memory = size or gigabytes << 30
    # What macOS lets graphics take unless it is told otherwise.
    share = memory * 3 // 4 if memory > 36 << 30 else memory * 2 // 3
    title = f"Apple {chip.replace('-', ' ').title()}"
    card = Processor(
        name="gpu0",
        description=f"{title}, graphics",
        memory=share,
        reserve=0,
        bandwidth=CARD_SHARE * bandwidth * _GB,
        flops=BATCH_SHARE * flops * _TERA,
        link=HOST_SHARE * bandwidth * _GB,
        source="data sheet",
    )
    host = _processor(title, memory - share, bandwidth * _GB, wanted or cores)
    return Profile(word.strip().lower(), host, (card,), OPERATION, SYNC, DOUBT)
