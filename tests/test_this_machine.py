"""The profile of this machine: measured once, kept, and what others hold of its memory."""

import json
import os
import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from gemcut.cli import main
from gemcut.engine import Device
from gemcut.errors import EngineError
from gemcut.profile import Kernels, Profile
from gemcut.runtime.machine import profiles
from gemcut.runtime.machine.bandwidth import Rates
from gemcut.runtime.machine.cards import named
from gemcut.runtime.machine.inspection import inspect_machine
from gemcut.runtime.machine.profiles import this_machine, usable_cards

GIBI = 1 << 30
PLAIN = Kernels({"q8_0": 8.123456e9, "q4_k": 4e9}, {"q4_k": 8e10}, {"q4_k": 10e10})
OWN = Kernels({"q4_k": 5e9}, {"q4_k": 9e10}, {"q4_k": 4e10})
RATES = Rates(PLAIN, OWN, 3e10, 0.0, 2e-6, 9e-6, True)


@pytest.fixture
def measured(monkeypatch):
    """Counts measurements, which take no time and find what it holds."""
    found = SimpleNamespace(rates=RATES, calls=[])

    def measure(device, threads, tell=None):
        found.calls.append((device.name, threads))
        return found.rates

    monkeypatch.setattr(profiles, "measure_rates", measure)
    return found


def test_this_machine_is_measured_once(measured, tmp_path):
    """Speeds are kept for the same threads; memory is what it is now."""
    first = this_machine(1, tmp_path)
    again = this_machine(1, tmp_path)
    this_machine(2, tmp_path)

    assert first.host.bandwidth == again.host.bandwidth == 8.12e9
    assert [1, 2] == [threads for _, threads in measured.calls]
    assert "measured" == first.host.source
    assert inspect_machine().ram_total == first.host.memory
    assert 0 < first.host.room <= first.host.memory
    assert pytest.approx(2e-6) == first.operation
    assert (4e9, 10e10) == (first.host.rate("q4_k"), first.host.batch_rate("q4_k", True))
    other = first.host.rearranging
    assert (5e9, 4e10) == (other.rate("Q4_K"), other.batch_rate("Q4_K", True))
    assert 2 == len(list(tmp_path.iterdir()))


@pytest.mark.parametrize("damage", ["", "{}", "rtx-4070", '{"version": 99}', "\0\0"])
def test_a_damaged_cache_is_measured_anew(measured, tmp_path, damage):
    """Whatever is in it, a profile of a machine with other cards included."""
    this_machine(1, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_text(named(damage).to_json() if damage == "rtx-4070" else damage)

    assert 8.12e9 == this_machine(1, tmp_path).host.bandwidth
    assert 2 == len(measured.calls)
    assert 8.12e9 == Profile.read(kept).host.bandwidth


def test_old_speeds_do_not_collect(measured, tmp_path, monkeypatch):
    """Of many machines, as with other threads each, those measured last are kept."""
    monkeypatch.setattr(profiles, "_MOST_KEPT", 2)
    other = tmp_path / "runs.json"
    other.write_text("{}")
    for threads in (1, 2, 3):
        for kept in tmp_path.iterdir():
            os.utime(kept, (threads, threads))
        this_machine(threads, tmp_path)
    this_machine(3, tmp_path)
    assert 3 == len(measured.calls)
    assert 3 == len(list(tmp_path.iterdir())) and other.exists()


def test_nobody_waits_a_second_time(measured, tmp_path):
    """A busy machine's speeds are doubted, but kept, however old they are."""
    measured.rates = replace(RATES, calm=False)
    busy = this_machine(1, tmp_path)
    (kept,) = tmp_path.iterdir()
    os.utime(kept, (0, 0))
    later = this_machine(1, tmp_path)

    assert busy.doubt == later.doubt == profiles.BUSY
    assert 1 == len(measured.calls)


def test_measured_anew_the_faster_count(measured, tmp_path):
    """Each by itself, where other programs were at work; on a calm machine the new ones do."""
    slow = Kernels({"q8_0": 6e9, "q4_k": 4.5e9}, {"q4_k": 9e10}, {"q4_k": 5e10})
    measured.rates = Rates(slow, slow, 4e10, 0.0, 1e-6, 9e-6, False)
    this_machine(1, tmp_path)
    measured.rates = RATES
    both = this_machine(1, tmp_path, anew=True).host
    alone = this_machine(1, tmp_path, anew=True)

    assert {"q8_0": 8.12e9, "q4_k": 4.5e9} == both.by_type
    assert (9e10, 10e10) == (both.batch_rate("q4_k", False), both.batch_rate("q4_k", True))
    assert (4e10, 5e10) == (both.flops, both.rearranged.experts["q4_k"])
    assert {"q8_0": 8.12e9, "q4_k": 4e9} == alone.host.by_type
    assert profiles.MEASURED == alone.doubt
    assert alone.host.by_type == this_machine(1, tmp_path).host.by_type


def test_without_a_cache_it_is_measured_all_the_same(measured, tmp_path, monkeypatch):
    """The cache is a folder in the user's own, and no error if it cannot be."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert 8.12e9 == this_machine(1).host.bandwidth

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    this_machine(1)
    assert ["gemcut"] == [path.name for path in (tmp_path / "own").iterdir()]


def test_a_profile_names_no_machine(measured, tmp_path, monkeypatch):
    """Neither the host's name, nor the user's folders, nor another machine's address."""
    far = Device("RPC0", "192.168.7.7:50052", "gpu", 8 * GIBI, 8 * GIBI)
    pretend(monkeypatch, far)

    text = this_machine(1, tmp_path).to_json()

    assert "another machine" in text
    for private in (socket.gethostname(), str(tmp_path), "192.168", os.path.expanduser("~")):
        assert len(private) < 3 or private not in text


def pretend(monkeypatch, *devices):
    """Let this machine have these devices beside its CPU, and 64 GiB."""
    real = inspect_machine()
    cpu = next(device for device in real.devices if device.kind == "cpu")
    other = replace(real, devices=(*devices, cpu), ram_total=64 * GIBI, ram_available=60 * GIBI)
    monkeypatch.setattr(profiles, "inspect_machine", lambda: other)


CUDA = Device("CUDA0", "NVIDIA GeForce RTX 4070", "gpu", 11 * GIBI, 12 * GIBI)
VULKAN = Device("Vulkan0", "Intel UHD", "igpu", 30 * GIBI, 32 * GIBI)
METAL = Device("MTL0", "Apple M3 Max", "gpu", 48 * GIBI, 48 * GIBI)
RPC = Device("RPC0", "10.0.0.1:50052", "gpu", GIBI, GIBI)
BLAS = Device("BLAS", "OpenBLAS", "accel", 0, 0)


@pytest.mark.parametrize(
    ("devices", "names"),
    [
        ([BLAS], []),
        ([CUDA, VULKAN], ["CUDA0"]),
        ([VULKAN, BLAS], ["Vulkan0"]),
        ([CUDA, RPC], ["RPC0", "CUDA0"]),
        ([VULKAN, RPC], ["RPC0", "Vulkan0"]),
    ],
)
def test_cards_are_those_of_llama_cpp(devices, names):
    """In its order: those of other machines first, a CPU's graphics only where nothing else is."""
    assert names == [device.name for device in usable_cards(devices)]


def test_what_others_hold_is_reserved(measured, tmp_path, monkeypatch):
    """On the card, with room for a context of our own."""
    pretend(monkeypatch, CUDA)

    found = this_machine(1, tmp_path)

    assert (12 * GIBI, GIBI + profiles.CONTEXT) == (found.cards[0].memory, found.cards[0].reserve)
    assert (64 * GIBI, 4 * GIBI) == (found.host.memory, found.host.reserve)
    assert pytest.approx(2 * 9e-6) == found.sync


@pytest.mark.parametrize("device", [VULKAN, METAL])
def test_one_memory_is_not_counted_twice(measured, tmp_path, monkeypatch, device):
    """A device that computes in the host's memory takes its part of it."""
    pretend(monkeypatch, device)

    found = this_machine(1, tmp_path)

    assert 64 * GIBI == sum(place.memory for place in found.places)
    assert found.host.room > 0


def test_without_the_engine_there_is_no_profile(monkeypatch):
    """The advice that the doctor has is the error."""
    nothing = replace(inspect_machine(), devices=(), trouble=("install it",))
    monkeypatch.setattr(profiles, "inspect_machine", lambda: nothing)
    with pytest.raises(EngineError, match="install it"):
        this_machine()


def test_the_doctor_measures_when_asked(measured, tmp_path, monkeypatch):
    """And writes the profile; without being asked nothing is measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, doctor = tmp_path / "machine.json", CliRunner()
    shown = doctor.invoke(main, ["doctor"])
    assert (0, []) == (shown.exit_code, measured.calls)

    shown = doctor.invoke(main, ["doctor", "--measure", "-o", str(path)])
    document = json.loads(doctor.invoke(main, ["doctor", "--measure", "--json"]).stdout)

    assert 0 == shown.exit_code
    assert "8.12 GB/s" in shown.stdout
    assert "4.00 GB/s of weights; batches 80, of experts 100 GFLOP/s; rearranged" in shown.stdout
    assert 2 == len(measured.calls)
    assert Profile.read(path).host.by_type == document["profile"]["host"]["by_type"]
    assert 2 == doctor.invoke(main, ["doctor", "-o", str(path)]).exit_code
    refused = doctor.invoke(main, ["doctor", "--measure", "-o", str(tmp_path / "none" / "m.json")])
    assert 1 == refused.exit_code
    assert "make the folder" in refused.stderr
