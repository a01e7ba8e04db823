"""Locks between processes: who works on a result, works on it alone.

A lock is the system's, on an open file: it is gone when the process ends, however that ends. So no
lock is ever left behind; at most an empty file is, which the next one uses. Where a file system
cannot lock, as some network ones, work goes on without.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gemcut.closing import Closing
from gemcut.errors import OutputError
from gemcut.positions import BINARY

if sys.platform == "win32":
    import msvcrt

    _BYTE = 1 << 40  # the one that is locked: behind all that is read or written

    def _take(fd: int, wait: bool) -> None:
        os.lseek(fd, _BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        finally:
            os.lseek(fd, 0, os.SEEK_SET)
else:
    import fcntl

    def _take(fd: int, wait: bool) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:  # some file systems cannot lock
            return


class Lock(Closing):
    """A file that this object alone has locked, until it is closed or the process ends.

    fd: the file, open for reading and writing; -1 when it is closed.
    """

    def __init__(self, path: Path, result: Path | None = None, wait: bool = False) -> None:
        """Open the file, made if there is none, and lock it.

        Args:
            result: what is being written, for messages; None: the file itself.
            wait: for others, rather than refuse.

        Raises:
            OutputError: another process has it, or it cannot be written.
        """
        self.path, self.fd = path, -1
        result = result or path
        try:
            while not self._opened(wait):
                pass
        except BlockingIOError:
            holder = _holder(path)
            raise OutputError(
                f"{result}: another process{holder} is writing it; wait until it is done, end it, "
                "or write elsewhere"
            ) from None
        except OSError as error:
            raise OutputError(f"{result}: cannot be written: {error.strerror}") from error

    def _opened(self, wait: bool) -> bool:
        """Open and lock; whether the file still has its name, which who had it may have removed."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | BINARY, 0o666)
        try:
            _take(fd, wait)
            if _is_at(self.path, fd):
                self.fd, fd = fd, -1
                return True
        finally:
            if fd >= 0:
                os.close(fd)
        return False

    def rename(self, path: Path) -> None:
        """Give the file another name, and close it. Raises OSError."""
        if sys.platform == "win32":
            self.close()  # what is open cannot be renamed there
        os.replace(self.path, path)  # first: nobody must lock what is about to go
        self.close()

    def remove(self) -> None:
        """Delete the file, and close it; nothing if it is closed. Raises OSError."""
        if self.fd < 0:
            return
        if sys.platform == "win32":
            self.close()
        try:
            self.path.unlink(missing_ok=True)  # first, too
        finally:
            self.close()

    def close(self) -> None:
        """Close the file, which stays and can be locked by others; closing again does nothing."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Let no other process work on a file meanwhile.

    Raises:
        OutputError: one does already, or nothing can be written there.
    """
    with _removed(Lock(file.with_name(f".{file.name}.lock"), file)):
        yield


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let no other process work in a folder meanwhile; it is made, and goes if it stays empty.

    Raises:
        OutputError: one does already, or nothing can be written there.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error
    try:
        with _removed(Lock(folder / ".gemcut.lock", folder)):
            yield
    finally:
        if new:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def _removed(lock: Lock) -> Iterator[None]:
    with lock:
        try:
            yield
        finally:
            with suppress(OSError):  # an empty file, in a folder that went or is read-only now
                lock.remove()


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    """Which process holds the lock, as far as Linux tells: " (4711)"."""
    with suppress(OSError, ValueError):
        with path.open("rb") as file:
            wanted = f"{_device(file.fileno())}:{os.fstat(file.fileno()).st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            _, kind, _, _, process, place, *_ = line.split()
            if (kind, place) == ("FLOCK", wanted):
                return f" ({process})"
    return ""


def _device(fd: int) -> str:
    """The file system's device as /proc/locks has it; `st_dev` is a subvolume's on Btrfs."""
    info = Path(f"/proc/self/fdinfo/{fd}").read_text().split()
    mount = info[info.index("mnt_id:") + 1]
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        number, _, device, *_ = line.split()
        if number == mount:
            major, minor = map(int, device.split(":"))
            return f"{major:02x}:{minor:02x}"
    raise ValueError(mount)
