"""What is checked of a result's place before any work is done for it."""

from collections.abc import Iterable
from pathlib import Path

from gemcut.errors import OutputError


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path | None] = ()) -> None:
    """Raise OutputError for what would cost a file, or hours.

    Args:
        outputs, inputs: what is going to be written and read; None: nothing.
    """
    taken = {path.resolve() for path in inputs if path}
    for path in filter(None, outputs):
        if path.resolve() in taken:
            raise OutputError(f"{path}: is read or written here, too; wanted another file's name")
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; wanted a file name")
        if not path.parent.is_dir():
            raise OutputError(f"{path}: cannot be written: make the folder {path.parent} first")
        taken.add(path.resolve())
