"""Checkpoints from the Hub: the only part of gemcut that touches the network, and only when asked.

A download is resumable and cached by huggingface_hub, which also reads the token and honours
HF_HUB_OFFLINE.
"""

import re
from pathlib import Path

from gemcut.errors import CheckpointError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "README.md"]


def is_repository(source: str) -> bool:
    """Whether a source names a repository (`owner/name`) rather than something on disk."""
    return bool(_REPOSITORY.fullmatch(source)) and not Path(source).exists()


def fetch(repository: str, revision: str | None = None, offline: bool = False) -> Path:
    """The folder of a repository's checkpoint, downloaded unless it is cached.

    Raises:
        CheckpointError: unknown, not accessible, or not cached while offline.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=_WANTED, local_files_only=offline
            )
        )
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repository}: no such folder, and as a Hub id it is neither cached nor reachable"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(f"{repository}: {str(error).splitlines()[0]}") from error
