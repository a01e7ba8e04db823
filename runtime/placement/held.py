"""What llama.cpp says that it takes, place by place, beside what the ledger says of the same."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gemcut.engine import Cache, Memory
from gemcut.profile import HOST
from gemcut.runtime.placement.placement import Placement

Pages = dict[str, dict[str, int]]  # place -> "weights", "kv", "compute", "outputs" -> bytes

_NUMBER = re.compile(r"\d")
_MAPPED = "_Mapped"  # ends the names of buffers that are the file itself


@dataclass(frozen=True)
class Names:
    """What llama.cpp calls the cards, in the order of the machine's, and what their memory."""

    devices: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()

    def place(self, name: str | None) -> str:
        """The place of a device or buffer: "CUDA0" is "gpu0".

        Pinned, mapped and repacked memory is the host's: "CUDA_Host", "CPU_Mapped", "CPU_REPACK".
        """
        for known in (self.buffers, self.devices):
            if name in known:
                return f"gpu{known.index(name)}"
        for index, buffer in enumerate(self.buffers):  # "MTL0_Mapped" is the card's own
            rest = (name or "").removeprefix(buffer)
            if name and rest != name and not _NUMBER.match(rest):
                return f"gpu{index}"
        return HOST


def held(memory: Memory, names: Names) -> Pages:
    """Bytes that llama.cpp's log tells of, by place; of a mapped file all that is mapped."""
    pages: Pages = {}

    def add(place: str, what: str, size: int) -> None:
        page = pages.setdefault(place, {})
        page[what] = page.get(what, 0) + size

    for what, buffers in (("weights", memory.weights), ("compute", memory.compute)):
        for buffer, size in buffers.items():
            add(names.place(buffer), what, size)
    for cache in memory.caches:
        for device, size in _shared(cache).items():
            add(names.place(device), "kv", size)
    add(HOST, "outputs", memory.outputs)
    return pages


def resident(memory: Memory, names: Names, placement: Placement) -> Pages:
    """The same, of a mapped file what has to stay in memory: not all that is mapped.

    A tensor that was copied, rearranged or to a card, lies in the mapping, too, where nobody reads
    it again; so the mapping counts for those of the host's tensors that were not.
    """
    pages = held(memory, names)
    mapped = sum(
        size
        for buffer, size in memory.weights.items()
        if buffer.endswith(_MAPPED) and names.place(buffer) == HOST
    )
    if mapped:
        copied = pages[HOST]["weights"] - mapped
        left = predicted(placement)[HOST]["weights"] - copied
        pages[HOST]["weights"] = copied + min(mapped, max(0, left))
    return pages


def predicted(placement: Placement) -> Pages:
    """The same by the ledger."""
    pages: Pages = {}
    for place, entries in placement.ledger.items():
        weights = (size for what, size in entries.items() if what.startswith("weights"))
        pages[place] = {"weights": sum(weights)}
        pages[place] |= {what: entries.get(what, 0) for what in ("kv", "compute", "outputs")}
    return pages


def totals(pages: Pages) -> dict[str, int]:
    """Bytes of each place."""
    return {place: sum(page.values()) for place, page in pages.items()}


def beyond(placement: Placement, memory: Memory, names: Names) -> dict[str, int]:
    """Bytes of caches and computing at each place that the ledger does not have.

    Weights are not looked at: the ledger has them out of the file's own table.
    """
    found, said = held(memory, names), predicted(placement)
    missing = {
        place: _running(page) - _running(said.get(place, {})) for place, page in found.items()
    }
    return {place: size for place, size in missing.items() if size > 0}


def _running(page: Mapping[str, int]) -> int:
    return page.get("kv", 0) + page.get("compute", 0)


def _shared(cache: Cache) -> dict[str, int]:
    """A cache's bytes by device; the log names the devices of its layers and the sum alone."""
    layers = len(cache.devices)
    return {
        device: cache.bytes * cache.devices.count(device) // layers
        for device in dict.fromkeys(cache.devices)
    }
