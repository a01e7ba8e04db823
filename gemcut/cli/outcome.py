"""A plan on the terminal: what was chosen, what else there was, and where the bytes go."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from gemcut.cli.common import new_table
from gemcut.errors import printable
from gemcut.sizes import format_size

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.plan import Plan
    from gemcut.quantize.explain import Alternative, Explanation
    from gemcut.quantize.outcome import Outcome, Point, Task

_ROLES = {
    "experts": "experts gate, up",
    "experts_gate_up": "experts gate+up",
    "experts_down": "experts down",
    "shared": "shared experts",
    "dense": "dense FFN",
    "attention_output": "attention output",
    "per_layer_embedding": "per-layer embd.",
    "per_layer": "per-layer inputs",
    "norm": "norms, scales",
}
_SPENT = {
    "kv": "keys and values",
    "compute": "computing",
    "outputs": "logits",
    "reserve": "system and others",
    "margin": "margin",
    "free": "free",
}


def head(outcome: "Outcome", task: "Task") -> Table:
    """What was chosen, and for what."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for label, text in _facts(outcome, task):
        grid.add_row(label, printable(text))
    return grid


def _facts(outcome: "Outcome", task: "Task") -> Iterator[tuple[str, str]]:
    from gemcut.gguf_layout import file_size
    from gemcut.quantize.choose import infos

    point, plan, context = outcome.chosen, outcome.plan, task.context
    if task.machine:
        for place in task.machine.places:
            memory = format_size(place.memory)
            yield place.name, f"{place.description}, {memory} (speeds: {place.source})"
        text = f"{context.n_ctx} tokens, keys in {context.type_k}, values in {context.type_v}"
        yield "context", text + (f", {context.n_seq} sequences" if context.n_seq > 1 else "")
    size = file_size(task.describe(plan), infos(task.model, plan))
    yield "chosen", f"{point.label}: a file of {format_size(size)}, {point.bpw:.2f} bits per weight"
    by = {"probe": "measured on the model", "prior": "priors"}[plan.predicted["kld_by"]]
    yield "KL divergence", f"{_loss(point)}, predicted from {by}"
    if outcome.worth:
        yield "types per expert", str(outcome.worth)
    if task.machine and point.decode is not None and point.prefill is not None:
        doubt = f"±{task.machine.doubt:.0%}, predicted"
        yield "decode", f"{_speed(point.decode)} tokens/s {doubt}"
        yield "prefill", f"{_speed(point.prefill)} tokens/s {doubt}"
    yield "proven", f"no choice is better by more than {max(1e-4, plan.solver['gap']):.2%}"


def frontier(outcome: "Outcome") -> Table:
    """The alternatives by size, the chosen one among them."""
    chosen, speeds = outcome.chosen, outcome.chosen.decode is not None
    columns = ("", "frontier,\npredicted", "tensors>", "bpw>", "KL\ndivergence>")
    speed = ("decode\ntokens/s>", "prefill\ntokens/s>", "on\ncards>")
    table = new_table(*columns, *(speed if speeds else ()), collapsed=True)
    for point in outcome.frontier:
        cells = [point.label, format_size(point.size), f"{point.bpw:.2f}", _loss(point)]
        if speeds and point.fits and point.decode is not None and point.prefill is not None:
            cells += [_speed(point.decode), _speed(point.prefill), format_size(point.cards)]
        elif speeds:
            cells += ["no room", "no room", ""]
        mark = (">" if point == chosen else "") + ("*" if point.below else "")
        table.add_row(mark, *cells, style="bold" if point == chosen else None)
    table.caption, table.caption_justify = _caption(outcome), "left"
    return table


def _caption(outcome: "Outcome") -> str:
    from gemcut.quantize.options import DEFAULT_RANGE

    text = "> chosen; --prefer takes speed, balance or quality"
    if any(point.below for point in outcome.frontier):
        experts, others = DEFAULT_RANGE
        text += (
            f"\n* some tensors below the default range: {experts} bits, {others} but for experts"
        )
    return text


def gains(outcome: "Outcome") -> Table:
    """What a little more of everything would buy."""
    chosen, speeds = outcome.chosen, outcome.chosen.decode is not None
    columns = ("what more would buy,\npredicted", "tensors>", "KL\ndivergence>")
    table = new_table(*columns, *(("decode\ntokens/s>",) if speeds else ()), collapsed=True)
    for gain in outcome.gains:
        point = gain.point
        more = point.size - chosen.size
        cells = [f"{'+' if more >= 0 else ''}{format_size(more)}"]
        cells.append(f"{point.kld:.3g} {_change(point.kld, chosen.kld)}")
        if point.decode and chosen.decode:
            cells.append(f"{_speed(point.decode)} {_change(point.decode, chosen.decode)}")
        table.add_row(gain.what, *cells)
    return table


def ledger(outcome: "Outcome") -> Table:
    """Where the bytes of every place go."""
    pages = outcome.plan.ledger
    places = (f"{place}>" for place in pages)
    table = new_table("where the bytes go", *places, collapsed=True)
    kinds = dict.fromkeys(kind for page in pages.values() for kind in page)
    weights = sorted(
        (kind for kind in kinds if kind not in _SPENT),
        key=lambda kind: -sum(page.get(kind, 0) for page in pages.values()),
    )
    for kind in (*weights, *_SPENT):
        if kind in kinds:
            name = _SPENT.get(kind) or role(kind.removeprefix("weights: "))
            cells = (_spent(page, kind) for page in pages.values())
            table.add_row(name, *cells, end_section=kind == weights[-1] or kind == "margin")
    return table


def _spent(page: Mapping[str, int], kind: str) -> str:
    """What of a place's bytes go there; a place whose memory was not counted has none free."""
    counted = kind != "free" or sum(page.values()) > 0
    return format_size(page[kind]) if page.get(kind) and counted else ""


def explanation(found: "Explanation") -> Table:
    """All that a tensor could have been."""
    places = found.places if any(found.places) else ()
    times = (f"ms at {place}>" for place in places)
    title = printable(found.name) + (f" at {found.device}" if found.device else "")
    titles = ("", title, "size>", "error>", "KL divergence>", *times)
    table = new_table(*titles, collapsed=True)
    for each in found.alternatives:
        mark = (">" if each.taken else "") + ("*" if each.below else "")
        table.add_row(mark, *_cells(each, len(places)), style="bold" if each.taken else None)
    table.caption = "predicted; > taken  * below the default range; ms are for one token"
    table.caption_justify = "left"
    return table


def _cells(each: "Alternative", places: int) -> Iterator[str]:
    types = ", ".join(f"{count} x {kind}" for kind, count in each.experts.items()) or each.type
    yield f"{types}, padded to {each.padded_to}" if each.padded_to else types
    yield format_size(each.size)
    yield "" if each.error is None else f"{each.error:.2e}"
    yield f"{each.loss:.2e}"
    yield from (f"{1e3 * seconds:.3g}" for seconds in each.seconds[:places])


def role(name: str) -> str:
    """A role's name for people."""
    return _ROLES.get(name, name)


def _loss(point: "Point") -> str:
    return f"{point.kld:.3g} ±{point.kld_se / point.kld:.0%}" if point.kld else "0"


def _speed(per_second: float) -> str:
    return f"{per_second:.0f}" if per_second >= 100 else f"{per_second:.3g}"


def _change(new: float, old: float) -> str:
    return f"({new / old - 1:+.0%})" if old else ""


def tables(outcome: "Outcome", task: "Task") -> Sequence[Table]:
    """All of them, in the order in which they are read."""
    found = [head(outcome, task), frontier(outcome)]
    if outcome.gains:
        found.append(gains(outcome))
    if outcome.plan.ledger:
        found.append(ledger(outcome))
    return found


def types_by_role(plan: "Plan") -> list[str]:
    """Types per role, then every tensor that did not get the type it was meant to have."""
    from gemcut.roles import role_of

    roles: dict[str, Counter[str]] = {}
    for name, entry in plan.tensors.items():
        if entry.type != "f32":
            role = f"{role_of(name).name}{', each' if entry.experts else ''}"
            roles.setdefault(role, Counter()).update(entry.experts or (entry.type,))
    width = max([18, *(len(role) + 1 for role in roles)])
    lines = [
        f"{role:{width}}" + ", ".join(f"{count} x {kind}" for kind, count in counts.most_common())
        for role, counts in roles.items()
    ]
    replaced = Counter((e.wanted, e.type) for e in plan.fallbacks.values())
    for (wanted, got), count in replaced.items():
        names = [n for n, e in plan.fallbacks.items() if (e.wanted, e.type) == (wanted, got)]
        lines.append(f"{wanted} does not fit {count} tensors, which get {got}: {', '.join(names)}")
    return lines
