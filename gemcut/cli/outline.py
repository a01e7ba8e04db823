"""What is planned for a run, in five lines."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gemcut.cli.common import say
from gemcut.sizes import format_size

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.runtime.placement.placement import Placement
    from gemcut.runtime.speed.throughput import Speed


def show_placement(placement: "Placement") -> None:
    """Five lines of talk: places, memory, context, speed, notes."""
    for line in described(placement):
        say(line)


def described(placement: "Placement") -> list[str]:
    """What is planned, in five lines."""
    context, notes = placement.context, "; ".join(placement.notes)
    kinds = dict.fromkeys((context.type_k, context.type_v))
    many = f" for {context.n_seq} sequences" if context.n_seq > 1 else ""
    return [
        f"{placement.origin}: {'; '.join(_held(placement))}",
        f"memory: {'; '.join(_used(placement))}",
        f"context: {context.n_ctx} tokens{many}, keys and values in {' and '.join(kinds)}, "
        f"{context.n_ubatch} tokens computed at once; weights {_loaded(placement)}",
        f"predicted for {placement.workload}: {_speed(placement.prefill)} read, "
        f"{_speed(placement.decode)} written, {placement.seconds:.3g} s a request",
        f"notes: {notes or 'none'}",
    ]


def _held(placement: "Placement") -> Iterator[str]:
    """What each place holds: blocks at home, and experts that are not with their blocks."""
    for place, page in placement.ledger.items():
        said = [
            f"{format_size(size)} of {kind.removeprefix('weights: ')}"
            for kind, size in page.items()
            if kind.startswith("weights: ")
        ]
        caches = page.get("kv", 0)
        said += [f"{format_size(caches)} of keys and values"] if caches else []
        yield f"{place} {', '.join(said) or 'nothing'}"


def _used(placement: "Placement") -> Iterator[str]:
    memory = {place.name: place.memory for place in placement.profile.places}
    for place, page in placement.ledger.items():
        own = memory[place] - page["free"] - page["reserve"]
        free, kept = format_size(page["free"]), format_size(page["reserve"])
        yield f"{place} {format_size(own)} used, {free} free, {kept} kept for others"


def _loaded(placement: "Placement") -> str:
    model = placement.model
    words = {"none": "read", "mmap": "mapped"}
    kept = words.get(model.load_mode, f"loaded by {model.load_mode}")
    if _rearranged(placement):
        kept += ", in the CPU's own layout"
    return f"{kept}, cards compute prompts" if _cards_read(placement) else kept


def _rearranged(placement: "Placement") -> bool:
    """Whether the CPU has weights in a layout of its own, as far as is known."""
    profile = placement.profile
    return bool(profile.host.rearranged.by_type) and placement.loading.rearranged(profile)


def _cards_read(placement: "Placement") -> bool:
    """Whether a card computes prompts with weights of the host."""
    return placement.loading.computing(placement.context, placement.profile).op_offload


def _speed(speed: "Speed") -> str:
    doubt = speed.se / speed.seconds if speed.seconds else 0.0
    rate = speed.per_second
    return f"{rate:.{0 if rate >= 100 else 1}f} ±{doubt:.0%} tokens/s"
