"""Where gemcut keeps what it would otherwise measure or make again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """This user's folder for it; it need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemcut"
