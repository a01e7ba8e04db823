"""What this machine is: cores, memory, devices, versions, and the builds it could have.

Facts only, as `gemcut doctor` prints them. Nothing here measures speed or plans.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gemcut import __version__, llama
from gemcut.cores import cgroup_values, default_threads, physical_cores, usable_cpus
from gemcut.engine import PINNED, Device
from gemcut.errors import EngineError
from gemcut.llama.experts_library import BUILD
from gemcut.runtime.experts.build import compiler, is_built

__all__ = ["BUILDS", "Machine", "default_threads", "inspect_machine", "missing_builds"]

_PACKAGES = ("llama-cpp-python", "gguf", "numpy", "huggingface-hub", "safetensors")


def _build(flag: str) -> str:
    """The pip line that builds llama-cpp-python with a backend.

    pip caches the wheel it built without regard to CMAKE_ARGS, hence no cache.
    """
    return (
        f'CMAKE_ARGS="-D{flag}=on" pip install --force-reinstall --no-cache-dir '
        f"--no-binary llama-cpp-python llama-cpp-python=={PINNED}"
    )


BUILDS = {
    "CUDA": _build("GGML_CUDA"),
    "Metal": _build("GGML_METAL"),
    "HIP": _build("GGML_HIP"),
    "Vulkan": _build("GGML_VULKAN"),
    "RPC": _build("GGML_RPC"),
}


@dataclass(frozen=True)
class Machine:
    """One machine as this process sees it: its limits (affinity, cgroup v2) are honoured."""

    system: str
    cpu: str
    physical_cores: int  # behind the CPUs this process may run on
    usable_cpus: int  # logical ones, hyper-threads counted
    threads: int  # what computations use unless told otherwise
    ram_total: int  # bytes
    ram_available: int | None  # bytes; None where the system does not say
    backends: tuple[str, ...]
    devices: tuple[Device, ...]
    trouble: tuple[str, ...]  # why there are no devices

    @cached_property
    def versions(self) -> dict[str, str]:
        """Of gemcut and the packages it stands on."""
        return {"gemcut": __version__} | {name: _version(name) for name in _PACKAGES}

    @cached_property
    def experts(self) -> str:
        """Whether files with types per expert run here, or what is missing."""
        try:
            if is_built():
                return "ready"
        except EngineError as error:
            return str(error)
        return f"not built: run `{BUILD}`" if compiler() else "not built: there is no C++ compiler"

    @cached_property
    def advice(self) -> tuple[str, ...]:
        """What is missing, and how to get it: one line each."""
        return (*self.trouble, *_advise(self.backends, hardware()))

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON knows it."""
        known = asdict(self)
        del known["trouble"]
        rest = {"versions": self.versions, "experts": self.experts, "advice": list(self.advice)}
        return known | rest


def inspect_machine() -> Machine:
    """Look at this machine. What is missing becomes advice instead of an error."""
    backends, devices, trouble = _engine()
    total, available = _memory(devices)
    return Machine(
        system=f"{platform.platform(terse=True)}, Python {platform.python_version()}",
        cpu=_cpu_name(),
        physical_cores=physical_cores(),
        usable_cpus=len(usable_cpus()),
        threads=default_threads(),
        ram_total=total,
        ram_available=available,
        backends=backends,
        devices=devices,
        trouble=tuple(trouble),
    )


def hardware() -> list[str]:
    """The backends this machine's graphics drivers could serve, best first."""
    if sys.platform == "darwin":
        return ["Metal"] if platform.machine() == "arm64" else []
    signs = (
        ("CUDA", Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")),
        ("HIP", Path("/dev/kfd").exists()),
        ("Vulkan", Path("/dev/dri/renderD128").exists() or shutil.which("vulkaninfo")),
    )
    return [name for name, seen in signs if seen]


def missing_builds(backends: tuple[str, ...]) -> dict[str, str]:
    """What llama.cpp could be built with and was not, with the line that does it."""
    # ggml's registry calls Metal "MTL" and ROCm by the name of the stack.
    built = {{"MTL": "Metal", "ROCm": "HIP"}.get(name, name) for name in backends}
    return {name: line for name, line in BUILDS.items() if name not in built}


def _advise(backends: tuple[str, ...], possible: list[str]) -> list[str]:
    """How to get what the hardware offers and the installed llama.cpp lacks."""
    missing, lines = missing_builds(backends), []
    if possible and missing.keys() >= set(possible):
        name = possible[0]
        lines.append(f"a {name} device is here, llama.cpp was built without it: {BUILDS[name]}")
    if "RPC" in missing:
        lines.append(f"to use devices of other machines: {BUILDS['RPC']}")
    return lines


def _engine() -> tuple[tuple[str, ...], tuple[Device, ...], list[str]]:
    try:
        return tuple(llama.backends()), tuple(llama.devices()), []
    except EngineError as error:
        return (), (), [str(error)]


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text() if info.is_file() else "", re.M)
    return found[1] if found else platform.processor() or platform.machine()


def _memory(devices: Sequence[Device] = ()) -> tuple[int, int | None]:
    """Total and available RAM in bytes, no more than the cgroups leave."""
    if not hasattr(os, "sysconf"):  # on Windows; llama.cpp asks the system in its own way
        host = next((device for device in devices if device.kind == "cpu"), None)
        return (host.total, host.free) if host else (0, None)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "darwin":
        return total, _free_on_mac()
    info = Path("/proc/meminfo")
    found = re.search(
        r"^MemAvailable:\s+(\d+) kB", info.read_text() if info.is_file() else "", re.M
    )
    available = int(found[1]) * 1024 if found else None
    limits = [int(value) for value in cgroup_values("memory.max") if value != "max"]
    if not limits:
        return total, available
    limit = min(total, *limits)
    left = limit - _cgroup_used()
    return limit, left if available is None else min(left, available)


def _cgroup_used() -> int:
    """Bytes charged to the nearest group, without the page cache that it gives back."""
    used = int(next(cgroup_values("memory.current"), "0"))
    stat = re.search(r"^inactive_file (\d+)$", next(cgroup_values("memory.stat"), ""), re.M)
    return used - int(stat[1]) if stat else used


def _free_on_mac() -> int | None:
    """Free, inactive and purgeable pages, which macOS hands out without swapping."""
    done = subprocess.run(["vm_stat"], capture_output=True, text=True, check=False)
    size = re.search(r"page size of (\d+) bytes", done.stdout)
    pages = re.findall(r"^Pages (?:free|inactive|purgeable): +(\d+)", done.stdout, re.M)
    return int(size[1]) * sum(map(int, pages)) if size and pages else None


def _sysctl(name: str) -> str:
    done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip()
