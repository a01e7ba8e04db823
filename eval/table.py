"""A comparison as people read it, and as programs do. Nothing here prints or computes a score."""

from collections.abc import Mapping
from math import floor, log10
from typing import Any

from rich.table import Table

from gemcut.eval.compare import Comparison, Protocol, Row
from gemcut.eval.statistics import Estimate
from gemcut.runtime.speed import Speed
from gemcut.sizes import format_size

_FORMAT = 1


def table(comparison: Comparison, speeds: Mapping[str, Speed] | None = None) -> Table:
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


def to_dict(comparison: Comparison, speeds: Mapping[str, Speed] | None = None) -> dict[str, Any]:
    """The comparison with its whole protocol, ready for JSON; no paths, no per-token scores."""
    return {
        "version": _FORMAT,
        "protocol": _protocol(comparison.protocol),
        "reference": comparison.rows[0].file.name if comparison.has_reference else None,
        "files": [_row(row, (speeds or {}).get(row.file.name)) for row in comparison.rows],
        "notes": list(comparison.notes),
    }


def format_estimate(estimate: Estimate, scale: float = 1.0, digits: int = 1) -> str:
    """Value and error to the error's second digit: "0.03741 ± 0.00031", "1.2e-09 ± 3e-10" if tiny.

    digits: show at least so many of the value, for numbers that are compared with each other.
    """
    value, error = estimate.value * scale, estimate.error * scale
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
    lines = [f"± one standard error, clustered by chunk (n = {comparison.protocol.n_chunks})"]
    if comparison.has_reference:
        lines.append(f"KLD in nats, top-1: against {comparison.rows[0].file.name}")
    return "\n".join([*lines, *comparison.notes])


def _compared_columns(comparison: Comparison) -> tuple[str, ...]:
    return ("KLD", "top-1 %") if comparison.has_reference else ()


def _cells(row: Row, has_reference: bool) -> list[str]:
    summary = row.summary
    cells = [row.file.name, format_size(row.file.size), f"{row.file.bpw:.2f}"]
    cells.append(format_estimate(summary.perplexity, digits=4))
    if has_reference:
        cells.append("reference" if summary.kld is None else format_estimate(summary.kld))
        cells.append("" if summary.same_top is None else format_estimate(summary.same_top, 100))
    return cells


def _speed(row: Row, speed: Speed | None, with_speed: bool) -> str:
    if speed is not None:
        return f"{speed.prefill:.0f}, {speed.decode:.1f}"
    return "" if with_speed else f"{row.prefill:.0f}"


def _protocol(protocol: Protocol) -> dict[str, Any]:
    texts = [
        {"name": text.name, "bytes": text.n_bytes, "sha256": text.sha256} for text in protocol.texts
    ]
    return {**{k: v for k, v in vars(protocol).items() if k != "texts"}, "texts": texts}


def _row(row: Row, speed: Speed | None) -> dict[str, Any]:
    file, summary = row.file, vars(row.summary)
    estimates = {k: vars(v) if isinstance(v, Estimate) else v for k, v in summary.items()}
    return {
        "name": file.name,
        "bytes": file.size,
        "bpw": file.bpw,
        "fingerprint": file.fingerprint,
        **estimates,
        "prefill_tokens_per_s": row.prefill,
        "speed": None if speed is None else vars(speed).copy(),
    }
