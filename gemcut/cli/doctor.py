"""`gemcut doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemcut.cli.common import FILE, as_json, print_json, say, steps, threads

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.profile import Kernels, Processor, Profile
    from gemcut.runtime.machine.inspection import Machine

Rows = list[tuple[str, str]]


@click.command("doctor")
@click.option("--measure", is_flag=True, help="also how fast weights are read; takes seconds")
@click.option("-o", "--output", type=FILE, help="with --measure: the machine.json to write")
@threads
@as_json
def command(measure: bool, output: Path | None, threads: int | None, as_json: bool) -> None:
    """Say what this machine has, which backends llama.cpp was built with and what they see."""
    from gemcut.outputs import check_outputs
    from gemcut.runtime.machine.inspection import inspect_machine

    if output and not measure:
        raise click.UsageError("-o is for what --measure finds")
    check_outputs([output])
    machine = inspect_machine()
    profile = _measured(threads) if measure else None
    if profile and output:
        profile.write(output)
    if as_json:
        print_json(machine.to_dict() | ({"profile": profile.to_dict()} if profile else {}))
        return
    for name, value in _facts(machine) + (_speeds(profile) if profile else []):
        click.echo(f"{name:17} {value}")


def _measured(threads: int | None) -> "Profile":
    from gemcut.runtime.machine.profiles import BUSY, this_machine

    with steps("measuring") as tell:
        profile = this_machine(threads, tell=tell, anew=True)
    if profile.doubt >= BUSY:
        say(
            "other programs kept this machine busy: the speeds may be too low; measured again "
            "later, the faster ones count"
        )
    return profile


def _facts(machine: "Machine") -> Rows:
    from gemcut.runtime.machine.inspection import missing_builds
    from gemcut.sizes import format_size

    free = machine.ram_available
    available = "" if free is None else f", {format_size(free)} available"
    cores = f"{machine.physical_cores} cores, {machine.usable_cpus} usable CPUs"
    return [
        ("system", machine.system),
        ("cpu", f"{machine.cpu} ({cores}; gemcut uses {machine.threads} threads)"),
        ("ram", f"{format_size(machine.ram_total)}{available}"),
        ("backends", ", ".join(machine.backends) or "none"),
        *(
            (
                "device",
                f"{d.name}: {d.description}, {d.kind}, {format_size(d.total)}, "
                f"{format_size(d.free)} free",
            )
            for d in machine.devices
        ),
        *machine.versions.items(),
        ("types per expert", machine.experts),
        *(("advice", line) for line in machine.advice),
        *((f"for {name}", line) for name, line in missing_builds(machine.backends).items()),
    ]


def _speeds(profile: "Profile") -> Rows:
    rows: Rows = []
    for place in profile.places:
        rows.append((place.name, f"{place.description}: {_memory(place)}"))
        rows += [(f"{place.name} {kind}", _multiplied(place, kind)) for kind in _types(place)]
        rows.append((f"{place.name} batches", f"{place.flops / 1e9:.0f} GFLOP/s"))
        rows += [(f"{place.name} {kind} cache", _attended(place, kind)) for kind in place.attention]
        if place.link:
            rows.append((f"{place.name} link", f"{_rate(place.link)} from the host"))
    rows.append(("an operation", f"{1e6 * profile.operation:.1f} us, however small"))
    if profile.cards:
        rows.append(("a block", f"{1e6 * profile.sync:.0f} us more if its experts are on the host"))
    return rows


def _attended(place: "Processor", kind: str) -> str:
    """How fast one token, and a batch, attends to keys and values of a type."""
    batches = place.attention_rate(kind) / 1e9
    return f"{_rate(place.cache_rate(kind))} for a token; batches {batches:.0f} GFLOP/s"


def _types(place: "Processor") -> list[str]:
    return sorted(place.by_type, key=lambda kind: -place.by_type[kind])


def _multiplied(place: "Processor", kind: str) -> str:
    """How fast weights of a type are multiplied, in each layout there is."""
    text, own = f"{_rate(place.by_type[kind])} of weights", place.rearranged
    if kind in place.batches:
        text += f"; {_batches(place, kind)}"
    if kind in own.by_type:
        text += f"; rearranged {_rate(own.by_type[kind])}; {_batches(own, kind)}"
    return text


def _batches(kernels: "Processor | Kernels", kind: str) -> str:
    dense, experts = kernels.batches[kind] / 1e9, kernels.experts[kind] / 1e9
    return f"batches {dense:.0f}, of experts {experts:.0f} GFLOP/s"


def _memory(place: "Processor") -> str:
    from gemcut.sizes import format_size

    return f"{format_size(place.memory)}, of which others hold {format_size(place.reserve)}"


def _rate(rate: float) -> str:
    return f"{rate / 1e9:.2f} GB/s"
