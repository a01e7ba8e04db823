"""A comparison as people read it, and as programs do. Nothing here prints or computes a score."""

from collections.abc import Mapping
from dataclasses import asdict
from math import floor, log10
from typing import Any

from rich.table import Table

from gemcut.eval.compare import Comparison, Protocol, Row
from gemcut.eval.intervals import Estimate
from gemcut.runtime.speed.measured import MeasuredSpeed
from gemcut.sizes import format_size

_FORMAT = 2


def table(comparison: Comparison, speeds: Mapping[str, MeasuredSpeed] | None = None) -> Table:
    """One line per file: size, bpw, perplexity, KL divergence, top-1 agreement, tokens/s.

    speeds: measured by `runtime.speed`, by file name; the last column then shows prefill and
    decode. Without them it shows the prefill speed seen while scoring.
    """
    with_speed = speeds is not None
    result = Table(title=_title(comparison.protocol), caption=_caption(comparison))
    result.add_column("file", overflow="fold")
    for name in ("size", "bpw", "PPL", *_compared_columns(comparison)):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("prefill, decode t/s" if with_speed else "prefill t/s", justify="right")
    for row in comparison.rows:
        speed = (speeds or {}).get(row.file.name)
        result.add_row(*_cells(row, comparison.has_reference), _speed(row, speed, with_speed))
    return result


def to_dict(
    comparison: Comparison, speeds: Mapping[str, MeasuredSpeed] | None = None
) -> dict[str, Any]:
    """The comparison with its whole protocol, ready for JSON; no paths, no per-token scores."""
    return {
        "version": _FORMAT,
        "protocol": _protocol(comparison.protocol),
        "reference": comparison.rows[0].file.name if comparison.has_reference else None,
        "files": [_row(row, (speeds or {}).get(row.file.name)) for row in comparison.rows],
        "notes": list(comparison.notes),
    }


def format_estimate(estimate: Estimate, scale: float = 1.0, digits: int = 1) -> str:
    """Value and half its interval, to the latter's second digit: "0.03741 ± 0.00031".

    digits: show at least so many of the value, for numbers that are compared with each other.
    """
    value, error = estimate.value * scale, (estimate.high - estimate.low) / 2 * scale
    if error <= 0:
        return f"{value:.4g}"
    decimals = max(0, 1 - floor(log10(error)))
    if value:
        decimals = max(decimals, digits - 1 - floor(log10(abs(value))))
    if decimals > 6:
        return f"{value:.1e} ± {error:.0e}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _title(protocol: Protocol) -> str:
    names = ", ".join(text.name for text in protocol.texts)
    return (
        f"{names}: {protocol.n_scored} tokens scored in {protocol.n_chunks} chunks of "
        f"{protocol.n_ctx} ({protocol.framing})"
    )


def _caption(comparison: Comparison) -> str:
    protocol = comparison.protocol
    lines = [f"± half the 95 % interval, over {protocol.n_clusters} {protocol.cluster}s"]
    if comparison.has_reference:
        lines.append(
            "KLD in nats (mean; of 99 % of tokens), same top token, right ones lost and gained: "
            f"against {comparison.rows[0].file.name}"
        )
    return "\n".join([*lines, *comparison.notes])


def _compared_columns(comparison: Comparison) -> tuple[str, ...]:
    return ("KLD", "99 %", "top-1 %", "lost, gained %") if comparison.has_reference else ()


def _cells(row: Row, has_reference: bool) -> list[str]:
    summary = row.summary
    cells = [row.file.name, format_size(row.file.size), f"{row.file.bpw:.2f}"]
    cells.append(format_estimate(summary.perplexity, digits=4))
    if has_reference and summary.kld is None:
        return [*cells, "reference", "", "", ""]
    if summary.kld and summary.same_top and summary.lost and summary.gained:
        cells += [format_estimate(summary.kld), f"{summary.tails[0.99].value:.3g}"]
        cells.append(format_estimate(summary.same_top, 100))
        cells.append(f"{100 * summary.lost.value:.2f}, {100 * summary.gained.value:.2f}")
    return cells


def _speed(row: Row, speed: MeasuredSpeed | None, with_speed: bool) -> str:
    if speed is not None:
        return f"{speed.prefill:.0f}, {speed.decode:.1f}"
    return "" if with_speed else f"{row.prefill:.0f}"


def _protocol(protocol: Protocol) -> dict[str, Any]:
    texts = [
        {"name": text.name, "bytes": text.n_bytes, "sha256": text.sha256} for text in protocol.texts
    ]
    return {**{k: v for k, v in vars(protocol).items() if k != "texts"}, "texts": texts}


def _row(row: Row, speed: MeasuredSpeed | None) -> dict[str, Any]:
    file = row.file
    estimates = asdict(row.summary)
    estimates["tails"] = {f"{100 * share:g} %": tail for share, tail in estimates["tails"].items()}
    return {
        "name": file.name,
        "bytes": file.size,
        "bpw": file.bpw,
        "fingerprint": file.fingerprint,
        **estimates,
        "prefill_tokens_per_s": row.prefill,
        "speed": None if speed is None else vars(speed).copy(),
    }
