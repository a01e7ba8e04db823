"""Open files read and written at a place, from several threads, on systems that differ in it."""

import os
from threading import Lock

# Windows would change line ends in what is opened without it.
BINARY = getattr(os, "O_BINARY", 0)
_seeking = Lock()  # where a file has one position for all threads


def read_at(fd: int, size: int, offset: int) -> bytes:
    """At most so many bytes from a place on. Raises OSError."""
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    with _seeking:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> int:
    """Write to a place; returns how many bytes were taken. Raises OSError."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _seeking:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def allocated(stat: os.stat_result) -> int:
    """Bytes of the disk that a file takes, as far as the system tells; else its size."""
    return 512 * stat.st_blocks if hasattr(stat, "st_blocks") else stat.st_size
