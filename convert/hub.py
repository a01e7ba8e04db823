"""Checkpoints on the Hub. With finished files (`hub_gguf`) and what the two share, this is all of
gemcut that touches the network, and only when asked.

A repository is listed and its small files are fetched; of the weights only headers at first, so
that what cannot be converted is found before hours of downloading. What is fetched goes into the
cache that other programs share (HF_HOME, HF_HUB_CACHE), or, shard by shard, into a folder of one's
own and away again.
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gemcut.convert import hub_cache, transfer
from gemcut.convert.files import Files, LocalFiles, read_at, small_files, weight_files
from gemcut.convert.hub_cache import Progress
from gemcut.convert.listing import Place, Unreachable, explained, listed
from gemcut.convert.transfer import Remote
from gemcut.errors import CheckpointError

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_HEAD = 1 << 18  # bytes: the headers of most shards fit, so that one request will do
_MORE_ROOM = "free some, set HF_HOME to a folder on a larger disk, or try --frugal"
_ROOM_FOR_ONE = "free some, or write to a larger disk: --frugal needs room for one shard"


def is_repository(source: str) -> bool:
    """Whether a source names a repository (`owner/name`) rather than something on disk.

    A name in a folder that exists, or of a GGUF, is a mistyped path: nobody asked for the network.
    """
    if not _REPOSITORY.fullmatch(source) or source.endswith(".gguf"):
        return False
    return not Path(source).parent.exists()


def open_repository(
    place: Place,
    offline: bool = False,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Files:
    """The files of a repository; offline or without a network, of its copy in the cache.

    Args:
        scratch: fetch the weights shard by shard into this folder, not into the cache.

    Raises:
        CheckpointError: unknown, not accessible, holds no checkpoint, or is not cached while there
            is no network.
    """
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        advice = "fetch it once without --offline and HF_HUB_OFFLINE"
        return _cached(
            place, f"{place.repository}: not in the cache, and this is offline: {advice}"
        )
    try:
        return HubFiles(place, scratch, progress)
    except Unreachable as error:
        advice = "not in the cache either; check the network, and HF_ENDPOINT if it is set"
        return _cached(place, f"{error}, and it is {advice}")


class HubFiles:
    """A repository's files at one commit, fetched when they are asked for."""

    def __init__(
        self, place: Place, scratch: Path | None = None, progress: Progress | None = None
    ) -> None:
        """List the repository and fetch its small files; see `open_repository`."""
        self.place, self.where, self._scratch = place, place.repository, scratch
        self._progress = progress or (lambda what, done, total: None)
        self._heads: dict[str, bytes] = {}
        self.commit, self._remotes = listed(place)
        self.identity = _identity(place, self.commit)
        with explained(place):
            self._fetch_small()

    def names(self) -> frozenset[str]:
        """The files at the top level."""
        return frozenset(self._remotes)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._remote(name).size

    def path(self, name: str) -> Path:
        """A file, fetched if it is not at hand."""
        remote = self._remote(name)
        if held := self._at_hand(name):
            return held
        with explained(self.place):
            if self._scratch is not None:
                return self._fetch_to_scratch(remote, self._scratch / self.commit, name)
            self._fetch_to_cache([name], name)
            return self._link([name], self.commit) / name

    def head(self, name: str, count: int, offset: int = 0) -> bytes:
        """Bytes of a file: of what is at hand, or by a request for a range."""
        remote = self._remote(name)
        if held := self._at_hand(name):
            return read_at(held, count, offset)
        with explained(self.place):
            if offset + count > _HEAD:
                return transfer.read_range(remote, offset, count)
            if name not in self._heads:
                self._heads[name] = transfer.read_range(remote, 0, _HEAD)
        return self._heads[name][offset : offset + count]

    def drop(self, name: str) -> None:
        """Remove a shard that was fetched into the scratch folder; the cache keeps what it has."""
        if self._scratch is None or name not in self._remotes:
            return
        own = self._scratch / self.commit
        with suppress(OSError):  # the folders stay while there is something in them
            (own / name).unlink(missing_ok=True)
            own.rmdir()
            self._scratch.rmdir()

    def check(self) -> None:
        """Nothing: what a commit holds does not change."""

    def fetch(self) -> None:
        """Fetch all weights into the cache; with a scratch folder, only see that each has room."""
        missing = [name for name in weight_files(self) if not self._at_hand(name)]
        with explained(self.place):
            if self._scratch is not None:
                largest = max((self._remotes[name].size for name in missing), default=0)
                transfer.check_room(self._scratch, largest, self.where, _ROOM_FOR_ONE)
                return
            self._fetch_to_cache(missing, self.where)
            if missing:
                self._link(missing, self.commit)

    def _remote(self, name: str) -> Remote:
        if name not in self._remotes:
            raise CheckpointError(f"{self.where}: has no {name}")
        return self._remotes[name]

    def _at_hand(self, name: str) -> Path | None:
        """Where a file is on this machine, if it is."""
        if found := hub_cache.at_hand(self.place, name, self.commit):
            return found
        own = self._scratch / self.commit / name if self._scratch is not None else None
        return own if own is not None and own.exists() else None

    def _fetch_small(self) -> None:
        names = sorted(small_files(self._remotes))
        self._fetch_to_cache([name for name in names if not self._at_hand(name)], self.where)
        # By the revision's name, so that the cache knows it when there is no network.
        if self._link(names, self.place.revision).name != self.commit:
            raise CheckpointError(f"{self.where}: changed while it was read; run again")

    def _fetch_to_cache(self, names: Collection[str], what: str) -> None:
        remotes = [self._remotes[name] for name in names]
        hub_cache.fetch(self.place, remotes, what, self._progress, _MORE_ROOM)

    def _fetch_to_scratch(self, remote: Remote, folder: Path, name: str) -> Path:
        missing = transfer.missing_bytes(remote, folder / name)
        transfer.check_room(folder, missing, remote.name, _ROOM_FOR_ONE)
        if hub_cache.is_for_the_client(remote):
            return self._link([name], self.commit, local_dir=folder) / name
        told = hub_cache.counter(self._progress, name, remote.size)
        transfer.fetch(remote, folder / name, told)
        return folder / name

    def _link(self, names: Sequence[str], revision: str | None, **to: Any) -> Path:
        return hub_cache.link(self.place, names, revision, **to)


def _cached(place: Place, otherwise: str) -> Files:
    """A repository's copy in the cache, without the network.

    Raises:
        CheckpointError: `otherwise`, and what is missing.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = hub_cache.snapshot(place, "config.json")
        files = LocalFiles(folder, place.repository, _identity(place, folder.name))
        if not weight_files(files):
            raise CheckpointError("its weights are missing")
    except LocalEntryNotFoundError as error:
        raise CheckpointError(otherwise) from error
    except CheckpointError as error:
        raise CheckpointError(f"{otherwise} ({error})") from error
    return files


def _identity(place: Place, commit: str) -> str:
    """A commit fixes every byte."""
    return hashlib.sha256(f"{place.repository}@{commit}".encode()).hexdigest()
