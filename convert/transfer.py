"""Fetching a file over HTTP so that no byte comes twice, and checking that it is the right one.

huggingface_hub starts a broken file from nothing in the next run (its unfinished files have names
of their own, so that two processes cannot spoil each other's; see its issue 4196). A shard has up
to 50 GB, hours on a home's line, so gemcut keeps the part and asks for the rest. What two processes
could spoil the digest finds.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gemcut.errors import CheckpointError
from gemcut.sizes import format_size

Told = Callable[[int], None]  # told how many bytes more are here

TRIES = 5  # in a row without a byte
PAUSE = 1.0  # seconds before the second try; twice as long before each further one
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Remote:
    """A file on a server: its size in bytes, and its digest as git has it (SHA-1 of the blob) or,
    for a large file, git-lfs (SHA-256)."""

    name: str  # for messages
    url: str
    size: int
    digest: str
    headers: Mapping[str, str] = field(repr=False)  # they hold the token


def part_of(target: Path) -> Path:
    """Where the unfinished file is."""
    return target.with_name(f"{target.name}.part")


def missing_bytes(remote: Remote, target: Path) -> int:
    """How much of a file is still to be fetched."""
    part = part_of(target)
    return max(0, remote.size - (part.stat().st_size if part.exists() else 0))


def check_room(folder: Path, wanted: int, what: str, advice: str) -> None:
    """Raise CheckpointError if there is no room for the bytes on the disk that a folder is on."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise CheckpointError(
            f"{what}: {format_size(wanted)} to be fetched into {folder}, where "
            f"{format_size(free)} are free; {advice}"
        )


def read_range(remote: Remote, offset: int, count: int) -> bytes:
    """Some bytes of a file, fewer where it ends. Raises as `fetch` does."""
    data, end = bytearray(), min(offset + count, remote.size)

    def append() -> None:
        start = offset + len(data)
        with _opened(remote, f"bytes={start}-{end - 1}") as response:
            skipped = start if response.status_code == 200 else 0  # a server that knows no ranges
            for block in response.iter_bytes():
                data.extend(block[skipped:])
                skipped = max(0, skipped - len(block))
                if len(data) >= end - offset:
                    return
        raise ConnectionError("it ended too early")

    _patiently(remote, append, lambda: end - offset - len(data))
    return bytes(data[: max(0, end - offset)])


def fetch(remote: Remote, target: Path, told: Told) -> None:
    """Fetch a file, from where the last try stopped; the target appears only when it is whole.

    Raises:
        CheckpointError: the connection breaks again and again, or what came is not the file.
        OSError: it cannot be written.
        Exception: of the Hub's client, for what trying again will not mend.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    part = part_of(target)
    lock = part.with_name(f"{part.name}.lock")
    part.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not target.exists():
            with open(part, "a+b") as file:
                digest = _Part(remote, file, told).complete()
            if digest != remote.digest:
                part.unlink()
                raise CheckpointError(
                    f"{remote.name}: damaged on the way: its digest is {digest}, wanted "
                    f"{remote.digest}; run again to fetch it anew"
                )
            os.replace(part, target)
    lock.unlink(missing_ok=True)


class _Part:
    """An unfinished file, and the digest of what is there of it."""

    def __init__(self, remote: Remote, file: BinaryIO, told: Told) -> None:
        self.remote, self.file, self.told = remote, file, told
        self._restart()
        file.seek(0)
        while self.done < remote.size and (block := file.read(_BLOCK)):
            self._count(block[: remote.size - self.done])
        file.truncate(self.done)

    def complete(self) -> str:
        """Append all that is missing; the digest of the whole."""
        _patiently(self.remote, self._append, lambda: self.remote.size - self.done)
        os.fsync(self.file.fileno())
        return str(self._hasher.hexdigest())

    def _append(self) -> None:
        """Append until it is whole or the connection breaks."""
        with _opened(self.remote, f"bytes={self.done}-") as response:
            if self.done and response.status_code == 200:  # all of it, though the rest was wanted
                self.told(-self.done)
                self.file.truncate(0)
                self._restart()
            for block in response.iter_bytes():
                block = block[: self.remote.size - self.done]
                self.file.write(block)
                self._count(block)
        if self.done < self.remote.size:
            raise ConnectionError("it ended too early")

    def _restart(self) -> None:
        self.done = 0
        blob = f"blob {self.remote.size}\0".encode()  # git's digest is of this and the contents
        large = len(self.remote.digest) == 64
        self._hasher = hashlib.sha256() if large else hashlib.sha1(blob, usedforsecurity=False)

    def _count(self, block: bytes) -> None:
        self.done += len(block)
        self._hasher.update(block)
        self.told(len(block))


def _patiently(remote: Remote, append: Callable[[], None], missing: Callable[[], int]) -> None:
    """Append until nothing is missing; the connection may break, but not always at one place."""
    failures = 0
    while (before := missing()) > 0:
        try:
            append()
        except Exception as error:
            if not may_pass(error):
                raise
            failures = 1 if missing() < before else failures + 1
            if failures == TRIES:
                raise CheckpointError(
                    f"{remote.name}: the connection broke {TRIES} times with "
                    f"{format_size(missing())} missing ({one_line(error)}); run again, what came "
                    "is kept"
                ) from error
            time.sleep(PAUSE * 2 ** (failures - 1))


def may_pass(error: Exception) -> bool:
    """Whether an error is of the connection or a busy server, so that trying again may help."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, (ConnectionError, http_error()))


def http_error() -> type[Exception]:
    """What the errors of the client's HTTP library are; versions of it have different libraries."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _opened(remote: Remote, span: str) -> Iterator[Any]:
    """The response to a request for a range of a file, not read yet."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    headers = {**remote.headers, "Range": span, "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    # The session follows redirects, and leaves the token behind where they lead to another host.
    with get_session().stream("GET", remote.url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        yield response
