"""`gemcut inspect`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from gemcut.cli.common import (
    as_json,
    downloads,
    new_table,
    print_json,
    print_table,
    reading_options,
)
from gemcut.cli.outcome import role as title_of
from gemcut.errors import printable
from gemcut.sizes import format_size

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.inspection import Inspection, Part
    from gemcut.kv_summary import CacheSummary


@click.command("inspect")
@click.argument("source", metavar="[SRC]", required=False)
@reading_options
@click.option("--families", is_flag=True, help="list the families of checkpoints that convert")
@click.option("--tensors", is_flag=True, help="list every tensor")
@click.option("--check", is_flag=True, help="whether it is a standard GGUF; status 1 if it is not")
@click.option("--modelfile", is_flag=True, help="print what Ollama imports the GGUF by")
@as_json
def command(
    source: str | None,
    families: bool,
    tensors: bool,
    check: bool,
    modelfile: bool,
    as_json: bool,
    **reading: Any,
) -> None:
    """Say what is in SRC, a checkpoint or a GGUF: roles, types, sizes, caches, what is unusual.

    Of an imatrix file: how experts were used, and what types per expert would bring. Without SRC:
    the families of checkpoints that gemcut converts.
    """
    from gemcut import api
    from gemcut.cli import routing

    _check_given(source, [families, tensors, check, modelfile], as_json and modelfile)
    if source is None or families:
        _print_families(as_json)
        return
    if modelfile:
        click.echo(api.ollama_modelfile(source), nl=False)
        return
    if check:
        _check(source, as_json)
        return
    if statistics := api.importance_in(source):
        if as_json:
            print_json(routing.to_dict(statistics))
        else:
            routing.describe(statistics)
        return
    found = api.inspect_source(source, fetched=downloads(), **reading)
    if as_json:
        print_json(found.to_dict(tensors))
        return
    for table in _tables(found, tensors):
        print_table(table)


def _check_given(source: str | None, asked: list[bool], text_as_json: bool) -> None:
    """Raise UsageError where something that was asked for would be passed over in silence."""
    families, *of_source = asked
    if sum(asked) > 1:
        raise click.UsageError("say one of --families, --tensors, --check and --modelfile")
    if source is None and any(of_source):
        raise click.UsageError("which SRC? --tensors, --check and --modelfile are of one")
    if text_as_json:
        raise click.UsageError("a Modelfile is text: --modelfile goes without --json")


def _check(source: str, as_json: bool) -> None:
    from gemcut import api

    found = api.check_file(source)
    if as_json:
        print_json(found.to_dict())
    else:
        table = new_table("checked", "", "found")
        for each in found.checks:
            mark = {True: "ok", False: "no", None: "note"}[each.ok]
            table.add_row(each.name, mark, each.found)
        table.caption = "not tested with Ollama and LM Studio themselves"
        table.caption_justify = "left"
        print_table(table)
    if not found.standard:
        raise SystemExit(1)


def _print_families(as_json: bool) -> None:
    from gemcut import api

    if as_json:
        keys = ("name", "title", "architectures")
        print_json([{key: getattr(family, key) for key in keys} for family in api.families()])
        return
    table = new_table("family", "llama.cpp's name", "architectures in config.json")
    for family in api.families():
        table.add_row(family.title, family.name, ", ".join(family.architectures))
    print_table(table)


def _tables(found: "Inspection", tensors: bool) -> Iterator[Table]:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for label, text in _facts(found):
        facts.add_row(label, printable(text))
    yield facts
    if found.parts:
        yield _parts(found)
    if found.stacks:
        yield _stacks(found)
    if found.cache and found.cache.contexts:
        yield _cache(found.cache)
    if tensors:
        yield _tensors(found)


def _facts(found: "Inspection") -> Iterator[tuple[str, str]]:
    origin, family = found.origin, f" ({found.family})" if found.family else ""
    kind = "checkpoint" if origin.kind == "checkpoint" else "GGUF"
    kind += f" in {origin.parts} parts" if origin.parts > 1 else ""
    kind += f", {origin.missing_parts} of them missing" if origin.missing_parts else ""
    yield "model", f"{found.name or 'no name'}: {found.architecture}{family}, {kind}"
    yield "weights", _weights(found)
    yield "size", f"{format_size(found.size)}, {found.bpw:.2f} bits per weight"
    if found.shape.blocks:
        yield "blocks", _blocks(found)
    if found.tokenizer:
        yield "tokenizer", _tokenizer(found)
    yield "template", "; ".join(map(_template, found.templates)) or "none"
    yield "lattice", _lattice(found)
    if found.plan:
        yield "plan", _plan(found)
    if found.imatrix:
        known = {k: v for k, v in vars(found.imatrix).items() if v is not None}
        yield "imatrix", ", ".join(f"{key} {value}" for key, value in known.items())
    if found.stacks:
        yield "experts", _experts(found)
    for note in [*found.notes, *_misfits(found)]:
        yield "note", note


def _weights(found: "Inspection") -> str:
    text = f"{_count(found.weights)}, of which a token uses {_count(found.active)}"
    if found.embedding == "tied":
        return f"{text} (with the embedding, which is the output, too)"
    return f"{text} (without the embedding)" if found.embedding else text


def _blocks(found: "Inspection") -> str:
    shape = found.shape
    text = f"{shape.blocks} of width {shape.hidden}"
    if shape.dense_blocks:
        text += f", the first {shape.dense_blocks} without experts"
    if shape.nextn_blocks:
        text += f", the last {shape.nextn_blocks} for drafting alone"
    if shape.experts:
        text += f"; {shape.experts} experts, {shape.experts_used} used"
        text += f" and {shape.experts_shared} shared" if shape.experts_shared else ""
    return f"{text}; context {_tokens(shape.context)} tokens"


def _tokenizer(found: "Inspection") -> str:
    known = found.tokenizer
    assert known is not None
    pre = f"/{known.pre}" if known.pre else ""
    special = ", ".join(f"{name} {token.id} {token.text}" for name, token in known.special.items())
    ends = " ".join(token.text for token in known.ends)
    return f"{known.model}{pre}, {known.size} tokens; {special}; ends at {ends or 'none'}"


def _template(template: Any) -> str:
    name = f"{template.name}: " if template.name else ""
    spoken = {"tools": template.tools, "thinking": template.thinking}
    yes = " and ".join(what for what, spoken_of in spoken.items() if spoken_of)
    return f"{name}{format_size(template.size)}, {f'knows {yes}' if yes else 'text alone'}"


def _lattice(found: "Inspection") -> str:
    from gemcut.lattice import CLAIMED

    on = [title_of(role) for role, share in sorted(found.lattice.items()) if share >= CLAIMED]
    if not found.lattice:
        return "not looked for: the weights are quantized"
    return f"on a Q4_0 lattice (QAT): {', '.join(on)}" if on else "on no Q4_0 lattice"


def _plan(found: "Inspection") -> str:
    assert found.plan is not None
    told = {"asked for": found.plan.request, "chosen by": found.plan.solver}
    told |= {"predicted": found.plan.predicted} if found.plan.predicted else {}
    return "; ".join(f"{what} {_pairs(data)}" for what, data in told.items())


def _experts(found: "Inspection") -> str:
    several = sum(len(stack.types) > 1 for stack in found.stacks)
    return (
        f"types of their own: {several} of {len(found.stacks)} stacks have several; runs in "
        "gemcut alone, `gemcut convert` makes a stock file of it"
    )


def _pairs(data: Any) -> str:
    if isinstance(data, dict):
        return ", ".join(f"{key} {_pairs(value)}" for key, value in data.items())
    return f"{data:.4g}" if isinstance(data, float) else str(data)


def _misfits(found: "Inspection") -> Iterator[str]:
    """Which rows do not divide into the blocks of 256 that most low-bit types have."""
    from gemcut.inspection import block_sizes

    misfits: dict[str, dict[int, list[str]]] = {}
    for part in found.parts:
        for columns in sorted(part.rows):
            if columns % 256 and columns >= 32:  # shorter ones are small filters, never cut
                widths = misfits.setdefault(_listing(block_sizes(columns)), {})
                widths.setdefault(columns, []).append(title_of(part.role))
    for blocks, widths in misfits.items():
        rows = ", ".join(f"{width} ({', '.join(roles)})" for width, roles in widths.items())
        if blocks:
            yield f"rows of {rows}: blocks of {blocks}, not 256: K and most IQ types fall back"
        else:
            yield f"rows of {rows}: no blocks divide them, so they stay in 16 bits"


def _listing(numbers: list[int]) -> str:
    if not numbers:
        return ""
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def _parts(found: "Inspection") -> Table:
    titles = ("role", "weights>", "active>", "size>", "types", "row widths")
    table = new_table(*titles, folded={"types"})
    for part in found.parts:
        active = _count(part.active) if part.active != part.weights else "all"
        rows = ", ".join(map(str, sorted(part.rows)))
        size = format_size(part.size)
        table.add_row(title_of(part.role), _count(part.weights), active, size, _types(part), rows)
    return table


def _types(part: "Part") -> str:
    most_first = sorted(part.types.items(), key=lambda each: -each[1]["size"])
    return ", ".join(f"{each['tensors']} x {kind}" for kind, each in most_first)


def _stacks(found: "Inspection") -> Table:
    """Of every stack, how many experts have which type: a column for each, the largest first."""
    from gemcut.ggml import type_named

    kinds = sorted({kind for stack in found.stacks for kind in stack.types})
    kinds.sort(key=lambda kind: -type_named(kind).bpw)
    table = new_table("experts by type", *(f"{kind}>" for kind in kinds), "bpw>", "size>")
    for stack in found.stacks:
        name = printable(stack.name.removesuffix(".weight"))
        counts = (str(stack.types.get(kind, "")) for kind in kinds)
        table.add_row(name, *counts, f"{stack.bpw:.2f}", format_size(stack.size))
    return table


def _cache(cache: "CacheSummary") -> Table:
    kinds = list(cache.per_token)
    table = new_table("caches, for a context of", *(f"{kind}>" for kind in kinds))
    for tokens, sizes in cache.contexts.items():
        table.add_row(f"{_tokens(tokens)} tokens", *(_bytes(sizes[kind]) for kind in kinds))
    if cache.full_blocks:
        label = f"{cache.full_blocks} blocks, per token"
        table.add_row(label, *(_bytes(cache.per_token[kind]) for kind in kinds))
    if cache.sliding_blocks:
        label = f"{cache.sliding_blocks} blocks, per cell of a window"
        table.add_row(label, *(_bytes(cache.per_cell[kind]) for kind in kinds))
    if cache.state:
        label = f"{cache.recurrent_blocks} recurrent blocks, per sequence"
        table.add_row(label, *[_bytes(cache.state)] * len(kinds))
    table.caption, table.caption_justify = _cache_note(cache), "left"
    return table


def _cache_note(cache: "CacheSummary") -> str | None:
    notes = []
    if cache.window:
        notes.append(f"windows of {cache.window} tokens take at most {cache.cells} cells")
    if cache.compressed:
        notes.append("keys alone are kept, compressed (MLA)")
    if cache.shared_blocks:
        notes.append(f"blocks that keep nothing of their own: {cache.shared_blocks}")
    return "; ".join(notes) or None


def _tensors(found: "Inspection") -> Table:
    table = new_table("tensor", "shape", "type", "role", "size>", folded={"tensor"})
    for role, info in found.tensors:
        shape = " x ".join(map(str, info.shape))
        name = printable(info.name)
        table.add_row(name, shape, str(info.type), title_of(role), format_size(info.nbytes))
    return table


def _count(number: int) -> str:
    return format_size(number).removesuffix("B").strip()


def _bytes(size: int | None) -> str:
    return "does not fit" if size is None else format_size(size)


def _tokens(number: int) -> str:
    return f"{number // 1024}k" if number and number % 1024 == 0 else str(number)
