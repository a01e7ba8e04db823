"""A result's place: what is checked before any work is done for it, and how it appears there."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def completed(path: Path) -> Iterator[Path]:
    """A hidden file beside a path to write into; at the end it takes the path's name.

    Nothing is left of it if writing fails.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):  # what stopped the writing may stop this, too
            partial.unlink(missing_ok=True)
