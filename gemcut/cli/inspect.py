"""`gemcut inspect`."""

import click

from gemcut.cli.common import as_json, print_json, print_table, source_options


@click.command("inspect")
@source_options
@as_json
def command(source: str, revision: str | None, offline: bool, as_json: bool) -> None:
    """Say what is in SRC, a checkpoint or a GGUF: roles, types, sizes, what is unusual."""
    from rich.table import Table

    from gemcut import api
    from gemcut.sizes import format_size

    found = api.inspect_source(source, revision, offline)
    if as_json:
        print_json(found.to_dict())
        return
    count = format_size(found.weights).removesuffix("B").strip()
    summary = f"{count} weights, {format_size(found.size)}, {found.bpw:.2f} bpw"
    table = Table(title=f"{found.architecture}: {summary}", caption="\n".join(found.notes) or None)
    for name in ("role", "tensors", "weights", "size", "types"):
        table.add_column(name, justify="left" if name in ("role", "types") else "right")
    for part in found.parts:
        types = ", ".join(f"{count} x {kind}" for kind, count in part.types.items())
        share = f"{part.weights / found.weights:.1%}"
        table.add_row(part.role, str(part.tensors), share, format_size(part.size), types)
    print_table(table)
