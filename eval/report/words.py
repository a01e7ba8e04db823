"""Numbers and names in words: to the precision of their error, short where there is little room."""

import os
import re
from collections.abc import Sequence
from math import expm1, floor, isfinite, log10
from pathlib import PurePath

from gemcut.eval.comparison import Comparison, Protocol
from gemcut.eval.statistics.intervals import Estimate
from gemcut.eval.texts.diagnosis import Diagnosis

_ENDING = re.compile(r"\.gguf(?=$| \(KV )")
_CACHE = re.compile(r" \(KV (\w+)/(\w+)\)$")

_FEW = 6  # clusters: intervals of fewer are wide, and may be wrong where some are unlike others
# What a framing does to a text, after "text".
FRAMINGS = {
    "raw": "as it is",
    "bos": "as it is, BOS in front",
    "chat": "as a turn of the chat template",
    "own": "being the reference's own answers",
}


def format_estimate(estimate: Estimate, scale: float = 1.0, digits: int = 1) -> str:
    """Value and half its interval, to the latter's second digit: "0.03741 ± 0.00031".

    digits: show at least so many of the value, for numbers that are compared with each other.
    """
    value, error = estimate.value * scale, (estimate.high - estimate.low) / 2 * scale
    if not (estimate.has_interval and isfinite(error) and error > 0):
        return f"{value:.4g}"
    decimals = max(0, 1 - floor(log10(error)))
    if value:
        decimals = max(decimals, digits - 1 - floor(log10(abs(value))))
    if decimals > 6:
        return f"{value:.1e} ± {error:.0e}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def format_change(log_ratio: Estimate) -> str:
    """A logarithm of a ratio as a change in percent: "+0.83 ± 0.10"."""
    text = format_estimate(log_ratio.over(_percent))
    return text if text.startswith("-") else f"+{text}"


def _percent(log_ratio: float) -> float:
    return 100 * expm1(min(log_ratio, 100.0))  # a ratio beyond any use must not overflow


def short_names(names: Sequence[str]) -> dict[str, str]:
    """What tells names apart: without the ending ".gguf" and without the words that all begin with.

    Words end at a hyphen, a space or a slash, so that Q4_K_M and Q4_K_S stay whole. Two cache types
    that are the same are named once.
    """
    bare = [_CACHE.sub(_one_type, _ENDING.sub("", name)) for name in names]
    prefix = os.path.commonprefix(bare) if len(set(bare)) > 1 else ""
    begin = 1 + max(prefix.rfind(mark) for mark in "- /")
    return {name: each[begin:] or each for name, each in zip(names, bare, strict=True)}


def _one_type(found: re.Match[str]) -> str:
    keys, values = found.groups()
    return f", KV {keys}" if keys == values else f", KV {keys}/{values}"


def title(protocol: Protocol) -> str:
    """What was scored: texts, tokens, chunks, framing."""
    names = [text.name for text in protocol.texts]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"{shown}: {protocol.n_scored:,} tokens scored in {protocol.n_chunks:,} chunks of "
        f"{protocol.n_ctx:,}, framing {protocol.framing}"
    )


def explanation(comparison: Comparison) -> list[str]:
    """What the numbers of a comparison rest on, a sentence each."""
    protocol, reference = comparison.protocol, comparison.reference
    count, what = protocol.n_clusters, protocol.cluster
    lines = [f"± is half of the 95 % interval over {count:,} {what}s."]
    if count < _FEW:
        lines.append("So few say little: score more text.")
    elif what == "chunk":
        lines.append("Of ten texts or more it would be over texts, which have less in common.")
    if reference is not None:
        lines.append(f"Compared token by token with {reference.column.name}.")
    if comparison.floor is not None:
        lines.append("Floor: the same weights computed in another way; nothing shows below it.")
    if any(row.letters for row in comparison.files):
        what = "ln PPL" if reference is None else "mean KLD"
        lines.append(f"Files that share a letter cannot be told apart by their {what}.")
        if comparison.detectable is not None:
            least = f"{comparison.detectable:.2g}"
            lines.append(f"A difference of {what} of {least} shows in 4 of 5 cases, less may not.")
    return lines


def diagnosed(diagnosis: Diagnosis) -> str:
    """Perplexities by framing, and the advice."""
    found = ", ".join(f"{name} {_plain(value)}" for name, value in diagnosis.perplexities.items())
    known = f"Perplexity by framing: {found}." if found else ""
    warning = (
        f"Perplexity with framing {diagnosis.framing} means nothing for this model."
        if diagnosis.meaningless
        else ""
    )
    return " ".join(filter(None, (warning, known, diagnosis.advice)))


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def portable(command: Sequence[str]) -> tuple[str, ...]:
    """A command's words for others: absolute paths become the names of their files."""
    return tuple(map(_portable, command))


def _portable(word: str) -> str:
    option, equals, value = word.partition("=")
    if equals and option.startswith("-"):
        return f"{option}={_portable(value)}"
    path = PurePath(word)
    return path.name if path.is_absolute() and path.name else word


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
