"""Outputs and caches that cannot be written, full disks, few descriptors, two at one output."""

import os
import resource
import shutil
import signal
import stat
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gemcut.lock import Lock
from tests.faults.commands import NAMED, Command, Workshop, remove
from tests.faults.kills import check_end
from tests.faults.running import Ended, contents
from tests.faults.signals import OTHERS

_INTO_FOLDERS = ("eval -o",)
_FEW = 24  # descriptors
_DISKS = (0.15, 0.4, 0.7, 0.95)  # of what a command writes


def refused(name: str, done: Ended, *words: str) -> None:
    """It ended with an error that a user can read."""
    assert done.code in (1, 2), f"{name}: {done.code}: {done.err}"
    assert "Traceback" not in done.err and "Error" in done.err, f"{name}: {done.err}"
    assert not words or any(word in done.err for word in words), f"{name}: {done.err}"


def _writing(shop: Workshop) -> list[Command]:
    return [command for command in shop.commands if "-o o" in command.line]


def odd_outputs(shop: Workshop) -> Counter[str]:
    """A folder, a link, a device, a pipe, a missing folder, a read-only disk: refused, unharmed."""
    counts = Counter[str]()
    for command in _writing(shop):
        if command.name in _INTO_FOLDERS:
            continue
        for odd in _odd(shop.fresh()):
            before = odd.lstat() if odd.is_symlink() or odd.exists() else None
            line = command.line.replace("-o o.gguf", f"-o {odd}").replace("-o o.json", f"-o {odd}")
            place = shop.fresh()
            refused(f"{command.name} to {odd}", shop.run(replace(command, line=line), place))
            if before:
                assert stat.S_IFMT(before.st_mode) == stat.S_IFMT(odd.lstat().st_mode), odd
            assert contents(place) == ({}, []), contents(place)[1]
            counts["refused"] += 1
    return counts


def _odd(place: Path) -> list[Path]:
    names = ("folder", "link", "dangling", "pipe")
    folder, link, dangling, pipe = (place / f"{name}.gguf" for name in names)
    folder.mkdir()
    (place / "target").write_text("somebody's")
    link.symlink_to(place / "target")
    dangling.symlink_to(place / "nothing")
    os.mkfifo(pipe)
    devices = [Path("/dev/full"), Path("/dev/null")]
    return [folder, link, dangling, pipe, *devices, place / "none" / "o.gguf", pipe / "o.gguf"]


def full_disks(shop: Workshop) -> Counter[str]:
    """A clear error; with room again, the same command comes to the same result."""
    counts = Counter[str]()
    for command in shop.commands:
        wanted, usual = shop.whole(command)
        size = sum(map(len, wanted.values())) or 16_000_000
        for share in _DISKS:
            place = shop.fresh()
            with _disk(place, int(share * size)) as resize:
                if resize is None:
                    return Counter({"skipped: no disk may be mounted": 1})
                done = shop.run(command, place)
                if done.code:
                    refused(f"{command.name} on {share:.0%}", done, "space", "free", "room")
                    counts["refused"] += 1
                    resize(4 * size + 100_000_000)
                    done = shop.run(command, place)
                check_end(command, place, done, wanted, usual)
                counts["finished"] += 1
            remove(place.parent)
    return counts


def full_caches(shop: Workshop) -> Counter[str]:
    """Scores that cannot be kept are an error that names the place; others need no cache."""
    counts = Counter[str]()
    for name in ("eval", "eval --sweep"):
        cache = shop.fresh()
        with _disk(cache, 24_000) as resize:
            if resize is None:
                return Counter({"skipped: no disk may be mounted": 1})
            refused(name, shop.run(NAMED[name], shop.fresh(), cache=cache), "XDG_CACHE_HOME")
            counts["refused"] += 1
    return counts


def unwritable_caches(shop: Workshop) -> Counter[str]:
    """A cache below a file, or on a read-only disk: a command does without, or says what to do."""
    counts = Counter[str]()
    blocked = shop.fresh() / "file"
    blocked.touch()
    sealed = shop.fresh()
    with _disk(sealed, 1_000_000) as resize:
        if resize is not None:
            resize(0)
        for command in (*shop.commands, *OTHERS):
            for cache in (blocked, *([sealed] if resize else [])):
                done = shop.run(command, shop.fresh(), cache=cache)
                if done.code:
                    refused(f"{command.name}: cache", done, "XDG_CACHE_HOME")
                counts["refused" if done.code else "done without"] += 1
    return counts


def few_descriptors(shop: Workshop) -> Counter[str]:
    """It works, or is refused in words."""
    counts = Counter[str]()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_FEW, _FEW))

    for command in (*shop.commands, *OTHERS):
        place = shop.fresh()
        done = shop.run(command, place, limit)
        if done.code:
            refused(f"{command.name} with {_FEW} descriptors", done)
        counts["refused" if done.code else "done"] += 1
        remove(place.parent)
    return counts


def two_at_once(shop: Workshop) -> Counter[str]:
    """The second is refused, with the first one's number; the first is not disturbed."""
    counts = Counter[str]()
    for command in _writing(shop):
        wanted, usual = shop.whole(command)
        place = shop.fresh()
        first = shop.start(command, place, _stop_once_locked)
        stopped = os.WIFSTOPPED(os.waitpid(first.pid, os.WUNTRACED)[1])
        assert stopped, f"{command.name} ended without a lock on what it writes"
        second = shop.start(command, place, said=place.parent / "other").end()
        refused(command.name, second, f"another process ({first.pid}) is writing")
        os.kill(first.pid, signal.SIGCONT)
        check_end(command, place, first.end(), wanted, usual)
        counts["refused"] += 1
        remove(place.parent)
    return counts


def _stop_once_locked() -> None:
    """Have this process stop itself as soon as it alone may write its output."""
    patched, lock = pytest.MonkeyPatch(), Lock.__init__

    def stopping(self: Lock, path: Path, result: Path | None = None, wait: bool = False) -> None:
        lock(self, path, result, wait)
        if result is not None:  # a cache's has no other name
            patched.undo()
            os.kill(os.getpid(), signal.SIGSTOP)

    patched.setattr(Lock, "__init__", stopping)


def removed_folders(shop: Workshop) -> Counter[str]:
    """The output's folder goes while the work is going on."""
    counts = Counter[str]()
    for command in _writing(shop):
        place = shop.fresh()

        def gone(changes: int, place=place) -> bool:
            if changes and place.exists():
                shutil.rmtree(place, ignore_errors=True)
            return False

        done = shop.start(command, place).end(gone)
        if done.code:
            refused(f"{command.name}, its folder removed", done)
        counts["refused" if done.code else "too late"] += 1
        remove(place.parent)
    return counts


@contextmanager
def _disk(place: Path, size: int) -> Iterator[Callable[[int], None] | None]:
    """A disk of so many bytes on a folder; yields how to change that (0: read-only), or None."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={max(size, 4096)}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return

    def resize(size: int) -> None:
        how = f"remount,size={size}" if size else "remount,ro"
        subprocess.run(["mount", "-o", how, str(place)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
