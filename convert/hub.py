"""Checkpoints from the Hub: the only part of gemcut that touches the network, and only when asked.

A download is resumable and cached by huggingface_hub, which also reads the token and honours
HF_HUB_OFFLINE.
"""

import re
from pathlib import Path

from gemcut.errors import CheckpointError

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "README.md"]


def is_repository(source: str) -> bool:
    """Whether a source names a repository (`owner/name`) rather than something on disk.

    A name in a folder that exists, or of a GGUF, is a mistyped path: nobody asked for the network.
    """
    if not _REPOSITORY.fullmatch(source) or source.endswith(".gguf"):
        return False
    return not Path(source).parent.exists()


def fetch(repository: str, revision: str | None = None, offline: bool = False) -> Path:
    """The folder of a repository's checkpoint, downloaded unless it is cached.

    Raises:
        CheckpointError: unknown, not accessible, or not cached while offline.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

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
    except Exception as error:  # the client's errors, and its HTTP library's, share no base
        said = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{repository}: cannot be fetched from the Hub: {said}") from error
