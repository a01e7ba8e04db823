"""How many of this machine's cores a process may compute on: affinity and cgroups are honoured."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def default_threads() -> int:
    """Physical cores this process may use: affinity and cgroup v2 quota honoured, at least 1.

    Two hyper-threads of a core share the units that multiply, so the second one does not help.
    """
    if sys.platform == "darwin":
        return _performance_cores() or os.cpu_count() or 1
    return max(1, min([physical_cores(), *_quotas()]))


def usable_cpus() -> set[int]:
    """Logical CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Physical cores behind the usable CPUs, before any quota."""
    return len(_physical(usable_cpus()))


def cgroup_values(name: str) -> Iterator[str]:
    """The contents of a cgroup v2 file in this process's group and in every group above it."""
    root = Path("/sys/fs/cgroup")
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    here = next((root / line[3:].strip("/") for line in groups if line.startswith("0::")), root)
    for folder in (here, *here.parents):
        if folder.is_relative_to(root) and (folder / name).is_file():
            yield (folder / name).read_text().strip()


def _physical(cpus: set[int]) -> set[str]:
    """One entry per core: the list of its hyper-threads where Linux tells, else the CPU itself."""
    cores = set()
    for cpu in cpus:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(path.read_text() if path.is_file() else str(cpu))
    return cores


def _quotas() -> list[int]:
    """Whole cores that each cgroup limit leaves; a cgroup writes "quota period" or "max period"."""
    limits = [value.split() for value in cgroup_values("cpu.max")]
    return [max(1, int(quota) // int(period)) for quota, period in limits if quota != "max"]


def _performance_cores() -> int:
    command = ["sysctl", "-n", "hw.perflevel0.physicalcpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.stdout.strip().isdigit() else 0
