"""Runs cases of one target until its time is over: one line to stdout for whatever happens.

Before each case its input is written to the folder, so that it is there if the process ends. Limits
of time and memory are the kernel's, which no C code escapes: SIGXCPU after seconds of computing
(with a traceback), MemoryError, or the end, where too much memory is asked for.
"""

import faulthandler
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from gemcut.errors import GemcutError
from tests.fuzz.apart import Finding, forked
from tests.fuzz.mutate import mutated
from tests.fuzz.target import Run, Target

CASE_SECONDS = 5
_ROOM = 2 << 30  # bytes more than what is taken before the first case
_GROWTH = 1 << 30  # bytes that a case may really take
_SAID = 2  # standard error, which `__main__` has put into a file
INPUT = "input"


def work(target: Target, folder: Path, seed: int, first: int, seconds: float) -> None:
    """Run case after case, and tell of each that was not as it should be."""
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", DeprecationWarning)  # as everywhere but in tests
    run, seeds = _begun(target, folder)
    _limit()
    until, number, told = time.monotonic() + seconds, first, 0.0
    _tell(began=True)
    while time.monotonic() < until:
        _more_seconds()  # for the change itself
        random = Random(f"{seed} {target.name} {number}")
        data = mutated(random, random.choice(seeds), target.mutators)
        (folder / INPUT).write_bytes(data)
        number += 1
        case = partial(_case, run, data)
        if finding := forked(case, CASE_SECONDS, _SAID) if target.forks else case():
            _tell(**finding)
        if time.monotonic() - told > 1:
            told = time.monotonic()
            _tell(cases=number)
    _tell(cases=number, ended=True)


def _begun(target: Target, folder: Path) -> tuple[Run, list[bytes]]:
    """The target, once it was seen to read what is good."""
    inner = folder / "work"
    shutil.rmtree(inner, ignore_errors=True)  # an earlier process's
    inner.mkdir(parents=True)
    run, seeds = target.open(inner), list(target.seeds())
    for data in seeds:
        run(data)
    return run, seeds


def _case(run: Run, data: bytes) -> Finding:
    """What went wrong, if anything."""
    _more_seconds()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    finding = None
    try:
        run(data)
    except GemcutError:
        pass
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        finding = _described(error)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if finding is None and grown > _GROWTH:
        finding = {"what": "memory", "text": f"{grown} bytes more", "signature": "memory"}
    return finding


def _described(error: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)
    place = " ".join(f"{Path(f.filename).name}:{f.name}" for f in frames[-4:])
    digest = hashlib.sha256(f"{type(error).__name__} {place}".encode()).hexdigest()[:10]
    text = "".join(traceback.format_exception(error))
    return {"what": type(error).__name__, "text": text[-20_000:], "signature": digest}


def _limit() -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGXCPU, chain=True)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + _ROOM, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _more_seconds() -> None:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(spent.ru_utime + spent.ru_stime) + CASE_SECONDS + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _tell(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    """The process: arguments as `__main__` gives them."""
    from tests.fuzz.targets import TARGETS

    name, folder, seed, first, seconds = sys.argv[1:]
    target = next(each for each in TARGETS if each.name == name)
    work(target, Path(folder), int(seed), int(first), float(seconds))


if __name__ == "__main__":
    main()
