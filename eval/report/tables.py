"""The report's tables: the columns people publish, then what weights, cache and routing cost."""

from collections.abc import Iterator, Mapping, Sequence

from gemcut.eval.comparison import Anatomy, Comparison, Effects, Report, Row
from gemcut.eval.report.anatomy import ROLES, UNCUT, is_planned, type_counts
from gemcut.eval.report.grid import Grid, Heading, grid, headings
from gemcut.eval.report.words import explanation, format_change, format_estimate, listed, title
from gemcut.eval.routing.agreement import LayerAgreement
from gemcut.eval.scoring.column import FLOOR, REFERENCE
from gemcut.eval.statistics.intervals import Estimate
from gemcut.eval.statistics.summary import Summary
from gemcut.eval.tasks.result import TaskResult, TaskRow
from gemcut.sizes import format_size

_MAIN = (
    Heading("file", right=False),
    Heading("size"),
    Heading("bpw", rank=1),
    Heading("PPL"),
    Heading("PPL %", rank=2, meaning="change of perplexity"),
    Heading("KLD", meaning="mean KL divergence in nats"),
    Heading("99 %", rank=3, meaning="of so many tokens KLD is below"),
    Heading("99.9 %", rank=4),
    Heading("same top %", meaning="tokens with the same most likely one"),
    Heading("flips %", rank=5, meaning="right most likely tokens lost, gained"),
    Heading("bits/byte", rank=6),
    Heading("tie", right=False),
)


def main(comparison: Comparison) -> Grid:
    """One line per file: size, bits per weight, and what it lost."""
    cells = map(_main_cells, comparison.rows)
    rows = [[each.get(heading.title, "") for heading in _MAIN] for each in cells]
    return grid(title(comparison.protocol), _MAIN, rows, *explanation(comparison))


def domains(comparison: Comparison) -> Grid | None:
    """Mean KL divergence (or perplexity) of every file on each domain, or else on each text."""
    parts = {row_name(row): row.by_domain or row.by_text for row in comparison.rows}
    names = list(dict.fromkeys(name for part in parts.values() for name in part))
    compared = any(s.kld for part in parts.values() for s in part.values())
    rows = [
        [file, *(_of_part(part.get(name), compared) for name in names)]
        for file, part in parts.items()
        if any(s.kld or not compared for s in part.values())
    ]
    if not rows:
        return None
    what = "Mean KLD in nats" if compared else "Perplexity"
    return grid(f"{what} by kind of text", headings("file", *names), rows)


def effects(comparison: Comparison) -> Grid | None:
    """What the cut and the cache cost, each alone and both together."""
    if not comparison.effects:
        return None
    rows = [
        [e.file, f"{e.type_k}/{e.type_v}", *map(small, (e.weights, e.cache, e.both)), _beyond(e)]
        for e in comparison.effects
    ]
    names = headings("file", "KV", "weights", "cache", "both", "beyond sum")
    note = (
        "Mean KLD in nats from the reference with an f16 cache: of the file alone, of the cache "
        "with the reference's weights, of both; what is beyond the sum is their interaction."
    )
    return grid("Weights and KV cache apart", names, rows, note)


def routing(comparison: Comparison) -> Grid | None:
    """How far experts are chosen as the reference chooses them: all blocks and the worst one."""
    rows = []
    for row in comparison.rows:
        if (found := row.routing) is None or not found.layers:
            continue
        worst = min(found.layers, key=_same)
        shares = (found.same, found.overlap, found.moved)
        cells = [format_estimate(share, 100) for share in shares]
        rows.append([row_name(row), *cells, f"{100 * worst.same.value:.1f}, block {worst.block}"])
    if not rows:
        return None
    used = next(row.routing for row in comparison.rows if row.routing)
    names = headings("file", "same set %", "overlap %", "gate moved %", "worst block %")
    note = (
        f"Of {used.n_used} experts chosen out of {used.n_experts}, mean over blocks and "
        f"{used.n_tokens:,} tokens: the same set, its share in common, gate mass given elsewhere."
    )
    return grid("Router agreement with the reference", names, rows, note)


def tasks(result: TaskResult) -> Grid:
    """One task: accuracy, and the items that changed against the reference."""
    names = headings("file", "accuracy %", "per byte %", "changed", "lost", "gained", "p")
    note = (
        "Accuracy with its 95 % interval (Wilson). Against the reference, on the same items: other "
        "answers, right ones lost and gained, and McNemar's p that chance does as much."
    )
    return grid(
        f"{result.name} ({result.kind}): {result.n_items:,} items",
        names,
        [_task_row(row) for row in result.rows],
        note,
    )


def speeds(report: Report) -> Grid | None:
    """Speed and memory as measured, where they were."""
    places = list(dict.fromkeys(place for file in report.files for place in file.memory))
    rows = [
        [file.name, *_speed(file), *(_memory(file, place) for place in places)]
        for file in report.files
        if file.speed or file.memory
    ]
    if not rows:
        return None
    names = headings("file", "prefill t/s", "decode t/s", *(f"{place} peak" for place in places))
    return grid("As measured on one machine", names, rows, *_conditions(report.files))


def predictions(report: Report) -> Grid | None:
    """Mean KL divergence as plans predicted it, beside what was measured."""
    rows = [
        [name, small(predicted), format_estimate(measured), f"{measured.value / predicted:.2f}"]
        for name, predicted, measured in predicted_and_measured(report)
    ]
    names = headings("file", "predicted", "measured", "ratio")
    return grid("Mean KLD, predicted and measured", names, rows) if rows else None


def predicted_and_measured(report: Report) -> list[tuple[str, float, Estimate]]:
    """Files whose plan predicted a KL divergence, with that and the measured one."""
    measured = {
        row.column.name: row.summary.kld
        for comparison in report.comparisons[:1]
        for row in comparison.files
        if row.summary and row.summary.kld
    }
    return [
        (file.name, file.predicted, measured[file.name])
        for file in report.files
        if file.predicted and file.name in measured
    ]


def types(report: Report) -> Grid | None:
    """For every role that is cut its tensors' types in each file, the most frequent first."""
    counts = {file.name: type_counts(file) for file in report.files}
    found = {role for of_file in counts.values() for role in of_file}
    roles = [role for role in ROLES if role in found and role not in UNCUT]
    if not roles:
        return None
    rows = [
        [name, *(_types(each.get(role, {})) for role in roles)] for name, each in counts.items()
    ]
    names = [Heading(title, right=False) for title in ("file", *roles)]
    return grid("Types by role", names, rows, *_uncut(counts))


def plans(report: Report) -> set[str]:
    """Names of the files whose types gemcut chose one by one."""
    return {file.name for file in report.files if is_planned(file)}


def _main_cells(row: Row) -> dict[str, str]:
    file, summary = row.column.file, row.summary
    cells = {"file": row_name(row), "tie": row.letters}
    if row.column.role != FLOOR:  # the floor is no file
        bpw = f"{file.bpw:.2f}" if file.bpw else ""  # none of a .kld file
        cells |= {"size": format_size(file.size), "bpw": bpw}
    if summary is None:
        return cells | {"KLD": "failed"}
    if row.column.role != FLOOR:
        cells["PPL"] = format_estimate(summary.perplexity, digits=4)
        cells["bits/byte"] = format_estimate(summary.bits_per_byte, digits=3)
    if row.column.role == REFERENCE:
        return cells | {"KLD": "reference"}
    return cells | _losses(summary)


def _losses(summary: Summary) -> dict[str, str]:
    """Against the reference, as far as there is one."""
    cells = {}
    if summary.log_ratio:
        cells["PPL %"] = format_change(summary.log_ratio)
    if summary.kld:
        cells["KLD"] = format_estimate(summary.kld)
    for share in (0.99, 0.999):
        if share in summary.tails:
            cells[f"{100 * share:g} %"] = small(summary.tails[share].value)
    if summary.same_top:
        cells["same top %"] = format_estimate(summary.same_top, 100)
    if summary.lost and summary.gained:
        cells["flips %"] = f"{100 * summary.lost.value:.2f}, {100 * summary.gained.value:.2f}"
    return cells


def row_name(row: Row) -> str:
    """As tables show it."""
    return "floor" if row.column.role == FLOOR else row.column.name


def small(value: float) -> str:
    """A divergence without an interval."""
    return f"{value:.3g}"


def _of_part(summary: Summary | None, compared: bool) -> str:
    if summary is None:
        return ""
    if not compared:
        return format_estimate(summary.perplexity, digits=4)
    return format_estimate(summary.kld) if summary.kld else ""


def _beyond(effect: Effects) -> str:
    return f"{effect.both - effect.weights - effect.cache:+.2g}"


def _same(layer: LayerAgreement) -> float:
    return layer.same.value


def _task_row(row: TaskRow) -> list[str]:
    if row.accuracy is None:
        return [row.name, "failed", *[""] * 5]
    by_bytes = row.accuracy_by_bytes
    counts = (row.changed, row.lost, row.gained)
    return [
        row.name,
        format_estimate(row.accuracy, 100),
        format_estimate(by_bytes, 100) if by_bytes else "",
        *("" if count is None else str(count) for count in counts),
        "" if row.p_value is None else p_value(row.p_value),
    ]


def p_value(p: float) -> str:
    """A probability as papers print it."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def _speed(file: Anatomy) -> tuple[str, str]:
    speed = file.speed
    if speed is None:
        return "", ""
    return _rate(speed.prefill, speed.prefill_spread), _rate(speed.decode, speed.decode_spread)


def _memory(file: Anatomy, place: str) -> str:
    return format_size(file.memory[place]) if place in file.memory else ""


def _rate(rate: float, spread: float) -> str:
    if not rate:
        return ""
    shown = f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
    off = f"{spread:.0f}" if spread >= 10 else f"{spread:.2g}"
    return f"{shown} ± {off}" if spread else shown


def _conditions(files: Sequence[Anatomy]) -> Iterator[str]:
    """How the first speed was measured; all are in one way."""
    speed = next((file.speed for file in files if file.speed), None)
    if speed:
        yield (
            f"A prompt of {speed.n_prompt} tokens and {speed.n_generate} generated ones at a depth "
            f"of {speed.depth}, {speed.threads} threads, median of {speed.repeats} runs ± half of "
            "their range."
        )


def _uncut(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Iterator[str]:
    for role in UNCUT:
        kinds = sorted({kind for each in counts.values() for kind in each.get(role, ())})
        if kinds:
            yield f"{role.capitalize()}: {listed(kinds)} in all files."


def _types(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{kind} ×{n}" if n > 1 else kind for kind, n in ordered)
