"""The cache of the Hub that programs share: files are put there as its own client would."""

import glob
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from gemcut.convert import transfer
from gemcut.convert.listing import Place
from gemcut.convert.transfer import Remote

Progress = Callable[[str, int, int], None]  # told what is fetched, and bytes done and in all


def at_hand(place: Place, name: str, commit: str) -> Path | None:
    """Where a file of a commit is in the cache, if it is."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(place.repository, name, place.store, commit)
    return Path(found) if isinstance(found, str) else None


def snapshot(place: Place, pattern: str) -> Path:
    """The cache's folder of a revision that has files of this pattern, without the network.

    Raises:
        LocalEntryNotFoundError: it is not there.
    """
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        place.repository,
        revision=place.revision,
        cache_dir=place.store,
        local_files_only=True,
        allow_patterns=pattern,
    )
    return Path(folder)


def fetch(
    place: Place, remotes: Iterable[Remote], what: str, progress: Progress, advice: str
) -> None:
    """Put files' contents where the cache looks for them before it downloads anything.

    Args:
        what: is fetched, for the progress.
        advice: what to do if the disk is too small.

    Raises:
        CheckpointError: no room, or as `transfer.fetch` raises it.
    """
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=place.repository, repo_type="model")
    blobs = place.store / folder / "blobs"
    wanted = {blobs / remote.digest: remote for remote in remotes}
    wanted = {blob: remote for blob, remote in wanted.items() if not blob.exists()}
    missing = sum(transfer.missing_bytes(remote, blob) for blob, remote in wanted.items())
    transfer.check_room(blobs, missing, place.repository, advice)
    told = counter(progress, what, sum(remote.size for remote in wanted.values()))
    for blob, remote in wanted.items():
        if not is_for_the_client(remote):
            transfer.fetch(remote, blob, told)


def link(place: Place, names: Sequence[str], revision: str | None, **to: Any) -> Path:
    """The cache's folder with these files; the client fetches what contents are not there."""
    from huggingface_hub import snapshot_download

    arguments = {"cache_dir": place.store, "token": place.token, "endpoint": place.endpoint}
    folder = snapshot_download(
        place.repository,
        revision=revision,
        allow_patterns=[glob.escape(name) for name in names],
        tqdm_class=_silent_bar(),
        **{**arguments, **to},
    )
    return Path(folder)


def is_for_the_client(remote: Remote) -> bool:
    """Whether a file is too large for HTTP: the Hub hands it out by a protocol of its own only."""
    from huggingface_hub import constants

    return remote.size > constants.MAX_HTTP_DOWNLOAD_SIZE


def counter(progress: Progress, what: str, total: int) -> transfer.Told:
    """Told how many bytes more are there, it tells how many there are in all."""
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        progress(what, done, total)

    return told


def _silent_bar() -> type[Any]:
    """A progress bar for the client that shows nothing."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Silent(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

    return Silent
