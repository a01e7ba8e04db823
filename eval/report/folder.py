"""Everything about a comparison in one folder: record, sheet, model card, page and pictures."""

import os
from contextlib import suppress
from pathlib import Path

from gemcut.errors import OutputError
from gemcut.eval.comparison import Report
from gemcut.eval.report import plots, record
from gemcut.eval.report.card import card
from gemcut.eval.report.page import page
from gemcut.eval.report.sections import gallery
from gemcut.eval.report.sheet import sheet
from gemcut.outputs import completed

PAGE, CARD, SHEET, PLOTS = "report.html", "README.md", "report.csv", "plots"
_UNFINISHED = ".unfinished"  # is there while results are written, and after what ended that


def check_folder(folder: Path) -> None:
    """Raise OutputError where results would replace what are no results."""
    others = [name for name in (PAGE, CARD, SHEET, record.SCORES) if (folder / name).exists()]
    ours = any((folder / name).exists() for name in (record.RECORD, _UNFINISHED))
    if others and not ours:
        raise OutputError(
            f"{folder / others[0]}: is there, and of no comparison; wanted another folder"
        )
    above = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not above.is_dir():
        raise OutputError(f"{above}: is a file, wanted a folder")
    if not os.access(above, os.W_OK):
        raise OutputError(f"{above}: cannot be written to: wanted another folder")


def write_folder(report: Report, folder: Path) -> list[Path]:
    """Write all files (pictures only if matplotlib is there), and say which.

    All is made before anything is written, each file is complete or not there, and the record comes
    last: results that are there are of one comparison.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
    """
    check_folder(folder)
    pictures = _pictures(report)
    first = next((name for name in pictures if name.endswith(".png")), None)
    texts = {PAGE: page(report), CARD: card(report, first), SHEET: sheet(report)}
    made = {name: text.encode("utf-8") for name, text in texts.items()} | pictures
    try:
        (folder / PLOTS if pictures else folder).mkdir(parents=True, exist_ok=True)
        (folder / _UNFINISHED).touch()
        (folder / record.RECORD).unlink(missing_ok=True)
        _remove_others(folder / PLOTS, {Path(name).name for name in pictures})
        for name, data in made.items():
            with completed(folder / name) as partial:
                partial.write_bytes(data)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error
    record.write(report, folder)
    with suppress(OSError):  # all is there
        (folder / _UNFINISHED).unlink()
    return [folder / name for name in (*made, record.SCORES, record.RECORD)]


def _pictures(report: Report) -> dict[str, bytes]:
    """Every picture as SVG and PNG, by the path of its file."""
    found: dict[str, bytes] = {}
    for plot in gallery(report) if plots.available() else ():
        found[f"{PLOTS}/{plot.name}.svg"] = plots.svg(plot).encode("utf-8")
        found[f"{PLOTS}/{plot.name}.png"] = plots.png(plot)
    return found


def _remove_others(plots_folder: Path, names: set[str]) -> None:
    """Delete pictures of an earlier comparison, of which this one has none."""
    for kind in ("*.svg", "*.png"):
        for path in plots_folder.glob(kind):
            if path.name not in names:
                path.unlink()
