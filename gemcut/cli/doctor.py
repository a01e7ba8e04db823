"""`gemcut doctor`."""

import click

from gemcut.cli.common import as_json, print_json


@click.command("doctor")
@as_json
def command(as_json: bool) -> None:
    """Say what this machine has, which backends llama.cpp was built with and what they see."""
    from gemcut.runtime.machine import inspect_machine, missing_builds
    from gemcut.sizes import format_size

    machine = inspect_machine()
    if as_json:
        print_json(machine.to_dict())
        return
    free = machine.ram_available
    available = "" if free is None else f", {format_size(free)} available"
    cores = f"{machine.physical_cores} cores, {machine.usable_cpus} usable CPUs"
    rows = [
        ("system", machine.system),
        ("cpu", f"{machine.cpu} ({cores}; gemcut uses {machine.threads} threads)"),
        ("ram", f"{format_size(machine.ram_total)}{available}"),
        ("backends", ", ".join(machine.backends) or "none"),
        *(
            ("device", f"{d.name}: {d.description}, {d.kind}, {format_size(d.total)}")
            for d in machine.devices
        ),
        *machine.versions.items(),
        *(("advice", line) for line in machine.advice),
        *((f"for {name}", line) for name, line in missing_builds(machine.backends).items()),
    ]
    for name, value in rows:
        click.echo(f"{name:17} {value}")
