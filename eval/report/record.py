"""A report as it is kept: `report.json` for programs, and `scores.npz` with the numbers per token.

With both, two results can be compared again, or text can be added, without the models. No path of a
machine is in them, and no text; but `scores.npz` holds the tokens that were scored.
"""

import json
from hashlib import file_digest
from pathlib import Path
from typing import Any

from gemcut.artefact import parse, read_text, write_text
from gemcut.errors import ReportError
from gemcut.eval.comparison import Report
from gemcut.eval.report.arrays import to_arrays, with_arrays, write_arrays
from gemcut.eval.report.plain import from_plain, to_plain
from gemcut.eval.report.words import portable
from gemcut.outputs import completed

RECORD, SCORES = "report.json", "scores.npz"
_FORMAT = 3


def to_dict(report: Report) -> dict[str, Any]:
    """The report ready for JSON: every number, but none per token."""
    return {"version": _FORMAT} | to_plain(report) | {"command": list(portable(report.command))}


def write(report: Report, folder: Path) -> None:
    """Keep a report in a folder that is there. Raises OutputError.

    The JSON, which has the digest of the other file, comes last: without it there is no record.
    """
    with completed(folder / SCORES) as partial:
        write_arrays(partial, to_arrays(report))
        digest = _digest(partial)
    document = to_dict(report) | {"scores_sha256": digest}
    write_text(folder / RECORD, json.dumps(document, indent=1, sort_keys=True) + "\n")


def read(folder: Path) -> Report:
    """A report that was kept, with its scores; paths and the contents of texts are empty.

    Raises:
        ReportError: a file is missing, damaged, of another version, or of another report.
    """
    path, scores = folder / RECORD, folder / SCORES
    text = read_text(path, "a report", ReportError)
    try:
        document = parse(text)
        version = document.pop("version", None) if isinstance(document, dict) else None
        if version != _FORMAT:
            raise ReportError(
                f"{path}: not a report of format {_FORMAT} but of {version!r:.20}: "
                "compare the files again with this version of gemcut"
            )
        digest = document.pop("scores_sha256", None)
        report = from_plain(Report, document, "the report")
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise ReportError(f"{path}: a damaged report: {error}") from error
    if _of(scores) != digest:
        raise ReportError(
            f"{scores}: not the scores of {RECORD} beside it; take both from one result"
        )
    return with_arrays(report, scores)


def _of(path: Path) -> str:
    if path.exists() and not path.is_file():  # a device may have no end
        raise ReportError(f"{path}: is no file")
    try:
        return _digest(path)
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror}") from error


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()
