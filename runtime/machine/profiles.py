"""Profiles: of this machine, measured once and kept; by name, out of data sheets; out of a file."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from statistics import median

from gemcut import llama
from gemcut.engine import PINNED, Device
from gemcut.errors import EngineError, OutputError, ProfileError, UsageError
from gemcut.profile import HOST, MOST_BYTES, VERSION, Kernels, Processor, Profile
from gemcut.runtime.machine.bandwidth import TYPES, Rates, Tell, measure_rates
from gemcut.runtime.machine.cards import HOST_RESERVE, SYNC, named, slowest
from gemcut.runtime.machine.inspection import Machine, inspect_machine
from gemcut.sizes import format_size
from gemcut.user_cache import cache_folder, keep_latest

__all__ = [
    "card_names",
    "named",
    "open_profile",
    "this_machine",
    "usable_cards",
    "with_limits",
]

# What a CUDA context and its libraries take of a card (reports say 320 to 330 MiB).
CONTEXT = 330 << 20
# Relative standard error of predicted speeds. Measured: the first-order model itself, which was off
# by 4 % where it was fitted and says nothing about heat or other programs. Busy: the rates, too,
# were taken while other programs ran. Assumed: cards of one size differ by a factor of two.
MEASURED, BUSY, ASSUMED = 0.15, 0.3, 0.5
_FARAWAY = "a device of another machine"  # its description would name that machine
_MOST_KEPT = 16  # of this machine with other devices, threads and versions


def this_machine(
    threads: int | None = None,
    cache: Path | None = None,
    tell: Tell = lambda done, total: None,
    anew: bool = False,
) -> Profile:
    """The profile of this machine: memory as it is now, speeds measured once.

    The first time takes seconds; speeds are kept until llama.cpp, the devices or the number of
    threads are others. Nobody waits for them a second time: those of a busy machine, which its
    doubt tells, are kept, too, until somebody asks for new ones.

    Args:
        threads: of the CPU; None: what computations use by default.
        cache: the folder that keeps them; None: gemcut's in the user's cache.
        tell: told (types measured, types in all), for each device anew.
        anew: measure again. What other programs made slower, then or now, does not count.

    Raises:
        EngineError: llama.cpp is missing, or a device does not compute.
    """
    machine = inspect_machine()
    host = next((device for device in machine.devices if device.kind == "cpu"), None)
    if host is None:
        raise EngineError(machine.advice[0] if machine.advice else "llama.cpp sees no CPU")
    cards, threads = usable_cards(machine.devices), threads or machine.threads
    path = (cache or cache_folder()) / f"machine-{_key(machine, threads)}.json"
    kept = _kept(path, len(cards))
    if kept and not anew:
        return _with_memory(kept, machine, cards)
    found = _measure(machine, host, cards, threads, tell)
    if kept and max(kept.doubt, found.doubt) >= BUSY:
        found = _faster(kept, found)
    with suppress(OSError, OutputError):  # without a cache it is measured again
        path.parent.mkdir(parents=True, exist_ok=True)
        found.write(path)
        keep_latest(path.parent.glob("machine-*.json"), _MOST_KEPT)
    return _with_memory(found, machine, cards)


def open_profile(spec: str) -> Profile:
    """The profile that a word means: a file's path, or names as `named` knows them.

    Raises:
        UsageError: neither a file nor known names.
        ProfileError: a file that is no profile.
    """
    if os.sep in spec or spec.endswith(".json") or Path(spec).is_file():
        return Profile.read(Path(spec))
    return named(spec)


def with_limits(profile: Profile, vram: Sequence[int] | None, ram: int | None) -> Profile:
    """The profile with other amounts of memory, in bytes, each in all: reserves are taken from it.

    Args:
        vram: of every card there is. Cards beyond those of the profile are assumed to be the
            slowest known with so much; cards that are not mentioned are not used.
        ram: of the host; 0: nothing there beyond what must be.

    Raises:
        UsageError: a limit that is negative, or leaves nothing.
    """
    if vram is not None:
        found = [_limited(profile, index, size) for index, size in enumerate(vram)]
        guessed = any(card.source == "assumed" for card in found)
        profile = profile.with_cards(tuple(found))
        if guessed:
            profile = replace(
                profile, doubt=max(ASSUMED, profile.doubt), sync=max(SYNC, profile.sync)
            )
    if ram is None:
        return profile
    host = replace(profile.host, memory=ram, reserve=profile.host.reserve if ram else 0)
    if ram:
        _check_room(host, "RAM")
    return replace(profile, host=host)


def usable_cards(devices: Sequence[Device]) -> list[Device]:
    """The devices that llama.cpp takes for cards, in its order.

    Those of other machines come first; a graphics unit of the CPU only counts where there is no
    card beside it.
    """
    gpus = [device for device in devices if device.kind == "gpu"]
    far = [device for device in gpus if _faraway(device)]
    near = [device for device in gpus if not _faraway(device)]
    return far + (near or [device for device in devices if device.kind == "igpu"])


def card_names() -> list[str]:
    """What llama.cpp calls the cards that it has now, in its order.

    Raises:
        EngineError: llama.cpp is missing.
    """
    return [card.name for card in usable_cards(llama.devices())]


def _limited(profile: Profile, index: int, size: int) -> Processor:
    if size <= 0:
        raise UsageError(f"VRAM of {size} bytes: for a machine without a card, name its memory")
    if index < len(profile.cards):
        card = replace(profile.cards[index], memory=size)
    else:
        card = slowest(size, f"gpu{index}")
    _check_room(card, "VRAM")
    return card


def _check_room(place: Processor, what: str) -> None:
    if place.memory > MOST_BYTES:
        raise UsageError(f"{place.memory} bytes of {what}, wanted {MOST_BYTES} at most")
    if not place.room:
        raise UsageError(
            f"{format_size(place.memory)} of {what}: {format_size(place.reserve)} of it are taken "
            f"by the system and other programs ({place.name}), wanted more than that"
        )


def _kept(path: Path, cards: int) -> Profile | None:
    """The speeds in a file of the cache; None: there are none to go on with."""
    try:
        found = Profile.read(path)
    except ProfileError:
        return None
    return found if len(found.cards) == cards else None


def _faster(one: Profile, other: Profile) -> Profile:
    """The faster of two measurements' speeds, each by itself: nothing makes them too fast."""
    places = [_fastest(*pair) for pair in zip(one.places, other.places, strict=True)]
    return replace(
        other,
        host=places[0],
        cards=tuple(places[1:]),
        operation=min(one.operation, other.operation),
        sync=min(one.sync, other.sync),
        doubt=min(one.doubt, other.doubt),
    )


def _fastest(one: Processor, other: Processor) -> Processor:
    first, second = one.rearranged, other.rearranged
    return replace(
        other,
        bandwidth=max(one.bandwidth, other.bandwidth),
        by_type=_more(one.by_type, other.by_type),
        flops=max(one.flops, other.flops),
        link=max(one.link, other.link),
        batches=_more(one.batches, other.batches),
        experts=_more(one.experts, other.experts),
        rearranged=Kernels(
            _more(first.by_type, second.by_type),
            _more(first.batches, second.batches),
            _more(first.experts, second.experts),
        ),
        caches=_more(one.caches, other.caches),
        attention=_more(one.attention, other.attention),
    )


def _more(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """The larger of both under each name."""
    return {name: max(rate, one.get(name, 0.0)) for name, rate in other.items()}


def _measure(
    machine: Machine, host: Device, cards: Sequence[Device], threads: int, tell: Tell
) -> Profile:
    """The speeds; memory is filled in later."""
    rates = measure_rates(host, threads, tell=tell)
    others = [measure_rates(card, threads, tell=tell) for card in cards]
    calm = all(each.calm for each in (rates, *others))
    return Profile(
        name="this machine",
        host=_processor(HOST, f"{machine.cpu}, {threads} threads", rates),
        cards=tuple(
            _processor(f"gpu{index}", _FARAWAY if _faraway(card) else card.description, each)
            for index, (card, each) in enumerate(zip(cards, others, strict=True))
        ),
        operation=_rounded((others or [rates])[0].operation),
        # Experts on the host: their input is fetched from the card, and their output sent there.
        sync=2 * _rounded(max((each.turn for each in others), default=0.0)),
        doubt=MEASURED if calm else BUSY,
    )


def _processor(name: str, description: str, rates: Rates) -> Processor:
    plain = _kernels(rates.plain)
    usual = plain.by_type.get("q8_0") or median(plain.by_type.values())
    return Processor(
        name=name,
        description="".join(c for c in description if c.isprintable())[:200],
        memory=0,
        reserve=0,
        bandwidth=usual,
        by_type=plain.by_type,
        flops=_rounded(rates.flops),
        link=_rounded(rates.link),
        source="measured",
        batches=plain.batches,
        experts=plain.experts,
        rearranged=_kernels(rates.rearranged),
        caches=_table(rates.caches),
        attention=_table(rates.attention),
    )


def _kernels(found: Kernels) -> Kernels:
    return Kernels(*map(_table, (found.by_type, found.batches, found.experts)))


def _table(rates: Mapping[str, float]) -> dict[str, float]:
    return {kind: _rounded(rate) for kind, rate in rates.items()}


def _rounded(measured: float) -> float:
    """Three digits: more of them nobody measured."""
    return float(f"{measured:.3g}")


def _with_memory(profile: Profile, machine: Machine, cards: Sequence[Device]) -> Profile:
    """The memory of this moment: what others hold now is reserved."""
    total, available = machine.ram_total, machine.ram_available
    reserve = HOST_RESERVE if available is None else total - available
    found = []
    for card, device in zip(profile.cards, cards, strict=True):
        memory = device.total
        if _shares(device):  # one memory: what the card may take is not the host's, too
            memory = min(memory, total * 3 // 4)
            total -= memory
        taken = max(0, device.total - device.free) + CONTEXT
        link = 0.0 if _faraway(device) else card.link  # the RPC backend offers no such computing
        found.append(replace(card, memory=memory, reserve=min(taken, memory), link=link))
    host = replace(profile.host, memory=total, reserve=max(0, min(reserve, total)))
    return replace(profile, host=host, cards=tuple(found))


def _shares(device: Device) -> bool:
    """Whether a device computes in the host's memory: a CPU's graphics unit, or Apple's."""
    return device.kind == "igpu" or device.name.startswith(("MTL", "Metal"))


def _faraway(device: Device) -> bool:
    return device.name.startswith("RPC")


def _key(machine: Machine, threads: int) -> str:
    """A digest of all that speeds depend on."""
    devices = [(d.name, d.description, d.kind, d.total) for d in machine.devices]
    rates = [each.name for each in fields(Rates)]
    what = [VERSION, PINNED, machine.cpu, threads, machine.backends, devices, TYPES, rates]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
