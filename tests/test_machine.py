"""What `gemcut doctor` knows about a machine."""

import json
import sys

import pytest

from gemcut import cores, engine, llama
from gemcut.errors import EngineError
from gemcut.runtime.machine import inspection as machine
from gemcut.runtime.machine.inspection import BUILDS, inspect_machine


def test_this_machine_adds_up():
    """Numbers are positive and in order, the engine's devices are there, JSON takes it all."""
    found = inspect_machine()

    assert 1 <= found.threads <= found.physical_cores <= found.usable_cpus
    assert found.ram_available is None or 0 < found.ram_available <= found.ram_total
    assert "CPU" in found.backends
    assert {"cpu"} <= {device.kind for device in found.devices}
    assert engine.PINNED == found.versions["llama-cpp-python"]
    assert json.loads(json.dumps(found.to_dict()))["devices"][0].keys() >= {"name", "free", "total"}


def test_without_the_engine_there_is_advice(monkeypatch):
    """A doctor who needs a healthy patient is of no use."""

    def broken():
        raise EngineError("llama-cpp-python is not installed: pip install it")

    monkeypatch.setattr(llama, "backends", broken)
    found = inspect_machine()

    assert ((), ()) == (found.backends, found.devices)
    assert "llama-cpp-python is not installed" in found.advice[0]


@pytest.mark.parametrize(
    ("built", "possible", "advised"),
    [
        (("CPU",), ["CUDA", "Vulkan"], ["CUDA", "RPC"]),
        (("CPU", "Vulkan"), ["CUDA", "Vulkan"], ["RPC"]),
        (("CPU", "ROCm", "RPC"), ["HIP"], []),
        (("CPU", "MTL", "RPC"), ["Metal"], []),
        (("CPU", "RPC"), [], []),
    ],
)
def test_advice_is_for_what_is_missing(built, possible, advised):
    """A build for the hardware that is here, unless there is one already."""
    lines = machine._advise(built, possible)

    assert len(advised) == len(lines)
    assert all(BUILDS[name] in line for name, line in zip(advised, lines, strict=True))


def test_builds_are_one_line_for_the_pinned_version():
    """pip's cache would hand out the build that was there before."""
    for line in BUILDS.values():
        assert f"llama-cpp-python=={engine.PINNED}" in line
        assert "--no-cache-dir" in line and "\n" not in line


def limits(monkeypatch, **files):
    """Pretend that the cgroups of this process hold these files."""
    monkeypatch.setattr(sys, "platform", "linux")
    values = {name.replace("_", ".", 1): value for name, value in files.items()}
    for module in (cores, machine):
        monkeypatch.setattr(module, "cgroup_values", lambda name: iter(values.get(name, [])))


@pytest.mark.parametrize(
    ("quotas", "threads"),
    [(["max 100000"], 8), (["350000 100000", "max 100000"], 3), (["50000 100000"], 1), ([], 8)],
)
def test_threads_keep_to_the_quota(monkeypatch, quotas, threads):
    """Whole cores of the tightest group, one at least."""
    limits(monkeypatch, cpu_max=quotas)
    monkeypatch.setattr(cores, "_physical", lambda cpus: set("abcdefgh"))

    assert threads == cores.default_threads()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_keeps_to_the_limit(monkeypatch):
    """The tightest group counts; page cache that the kernel gives back is not used memory."""
    limits(
        monkeypatch,
        memory_max=["max", "600000000"],
        memory_current=["500000000"],
        memory_stat=["anon 1\ninactive_file 400000000"],
    )

    assert (600_000_000, 500_000_000) == machine._memory()
