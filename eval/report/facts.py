"""What a report's numbers rest on: protocol, texts, files, and what files say of themselves."""

import shlex
from collections.abc import Iterator

from gemcut.errors import printable
from gemcut.eval.comparison import Comparison, Protocol, Report
from gemcut.eval.report.grid import Grid, Heading, grid
from gemcut.eval.report.words import FRAMINGS, portable

_LEFT = Heading("", right=False)


def protocol(comparison: Comparison) -> Grid:
    """How the numbers were made, a line for each fact."""
    p = comparison.protocol
    bos = "none" if p.bos is None else f"token {p.bos}"
    lines = [
        ("context", f"{p.n_ctx:,} tokens"),
        (
            "scored",
            f"{p.n_scored:,} tokens of {p.bytes_per_token:.3g} bytes, {p.n_chunks:,} chunks",
        ),
        ("error bars", f"95 %, over {p.n_clusters:,} {p.cluster}s"),
        ("framing", f"{p.framing}: text {FRAMINGS.get(p.framing, 'framed')}; begins with: {bos}"),
        ("engine", _engine(p)),
        *(("floor", _how(comparison)) for _ in range(comparison.floor is not None)),
    ]
    return grid("Protocol", (_LEFT, _LEFT), lines)


def texts(report: Report) -> Grid:
    """The texts that were scored, with digests."""
    found = dict.fromkeys(text for each in report.comparisons for text in each.protocol.texts)
    lines = [(text.name, text.domain, f"{text.n_bytes:,}", text.sha256) for text in found]
    lines += [(task.name, task.kind, "", task.sha256) for task in report.tasks]
    names = (Heading("text", right=False), Heading("kind", right=False), Heading("bytes"))
    return grid("Texts", (*names, Heading("sha256", right=False)), lines)


def files(report: Report) -> Grid:
    """The files, with fingerprints: of size and samples, not of every byte."""
    rows = (row for comparison in report.comparisons for row in comparison.rows)
    found = dict.fromkeys(row.column.file for row in rows)
    lines = [(file.name, f"{file.size:,}", file.fingerprint) for file in found]
    names = (Heading("file", right=False), Heading("bytes"), Heading("fingerprint", right=False))
    note = "fingerprint: sha256 of size and samples of the file, not of every byte."
    return grid("Files", names, lines, note)


def said(report: Report) -> Grid | None:
    """What files say of where they come from; what all of them say is there once."""
    lines = list(_said(report))
    names = (Heading("file", right=False), Heading("", right=False), Heading("", right=False))
    return grid("What the files say of themselves", names, lines) if lines else None


def commands(report: Report) -> list[str]:
    """What makes the report again, as a shell takes it."""
    return [shlex.join(portable(report.command))] if report.command else []


def said_by_all(report: Report, what: str) -> str | None:
    """What all files that say something about it say alike, on one line; None if nothing."""
    values = {file.provenance[what] for file in report.files if file.provenance.get(what)}
    return printable(values.pop()) if len(values) == 1 else None


def model_name(report: Report) -> str | None:
    """What the files are versions of."""
    return said_by_all(report, "base model") or said_by_all(report, "model")


def _said(report: Report) -> Iterator[tuple[str, str, str]]:
    told = [file.provenance for file in report.files if file.provenance]
    common = {k: v for k, v in told[0].items() if all(m.get(k) == v for m in told)} if told else {}
    yield from (("all" if len(told) > 1 else "", key, value) for key, value in common.items())
    for file in report.files:
        for key, value in file.provenance.items():
            if key not in common:
                yield file.name, key, value


def _engine(protocol: Protocol) -> str:
    threads = protocol.threads
    return protocol.engine + (f", {threads} thread{'s' * (threads > 1)}" if threads else "")


def _how(comparison: Comparison) -> str:
    """What is different about the reference's second column."""
    assert comparison.floor is not None, "who calls has looked"
    column = comparison.floor.column
    attention = "with" if column.flash_attention else "without"
    return f"the reference again, batches of {column.n_ubatch}, {attention} flash attention"
