"""A result's place: what is checked before any work is done for it, and how it appears there."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gemcut.errors import OutputError
from gemcut.lock import Lock


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path | None] = ()) -> None:
    """Raise OutputError for what would cost a file, or hours.

    Args:
        outputs, inputs: what is going to be written and read; None: nothing.
    """
    taken = {path.resolve() for path in inputs if path}
    for path in filter(None, outputs):
        if path.resolve() in taken:
            raise OutputError(f"{path}: is read or written here, too; wanted another file's name")
        check_kind(path)
        if not path.parent.is_dir():
            raise OutputError(f"{path}: cannot be written: make the folder {path.parent} first")
        taken.add(path.resolve())


def check_kind(path: Path) -> None:
    """Raise OutputError for a name whose file must not be replaced: a folder, a device, a link."""
    if path.is_symlink():
        raise OutputError(
            f"{path}: is a link to {os.readlink(path)}, and would be replaced by a file; name the "
            "file itself, or remove the link"
        )
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; wanted a file name")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is a device or a pipe; wanted a file name")


@contextmanager
def completed(path: Path) -> Iterator[Path]:
    """A hidden file beside a path to write into; when it is on the disk it takes the path's name.

    Nothing is left of it if writing fails.

    Raises:
        OutputError: it cannot be written, or another process is writing it.
    """
    check_kind(path)
    with Lock(path.with_name(f".{path.name}.partial"), path) as lock:
        try:
            yield lock.path
            os.fsync(lock.fd)
            lock.rename(path)
        except OSError as error:
            why = error.strerror or error  # not every library says it in the system's words
            raise OutputError(f"{path}: cannot be written: {why}") from error
        finally:
            with suppress(OSError):  # what stopped the writing may stop this, too
                lock.remove()
