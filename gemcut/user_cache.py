"""Where gemcut keeps what it would otherwise measure or make again."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path:
    """This user's folder for it; it need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemcut"


def keep_latest(files: Iterable[Path], most: int) -> None:
    """Delete all but so many of some files, those that were written last. Never fails: what cannot
    be deleted stays."""
    ages: list[tuple[int, Path]] = []
    for path in files:
        with suppress(OSError):  # another process was faster
            ages.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(ages, reverse=True)[most:]:
        with suppress(OSError):
            path.unlink()
