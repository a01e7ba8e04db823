"""How fast a device reads weights: products timed through ggml's backends, without a model."""

import json
import resource
import time

import numpy as np
import pytest

from gemcut import ggml, llama
from gemcut.engine import Device
from gemcut.errors import EngineError, PlanError
from gemcut.llama import backend
from gemcut.llama.attention import Attention
from gemcut.llama.backend import Backend, Buffer, _valid_bytes
from gemcut.llama.matmul import Products, Sums
from gemcut.quantize import candidates
from gemcut.runtime.machine import bandwidth
from gemcut.runtime.machine.bandwidth import TYPES, Sample, measure_rates
from tests.rpc import beside_a_device

MEBI = 1 << 20


@pytest.fixture(scope="module")
def memory():
    """Little memory on a CPU that computes with one thread."""
    with Backend("CPU", 1) as backend, Buffer(backend, 16 * MEBI) as taken:
        yield taken


def test_every_type_that_may_be_chosen_is_measured():
    """The room for quantization has its own list; this one must not fall behind."""
    chosen = {c.type.name for c in candidates.measured(1024, "f32", True, paddable=False)}

    assert chosen <= set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_memory_holds_valid_weights(name):
    """Wherever a block of any type begins: finite, and in a normal range."""
    kind = ggml.type_named(name)
    for start in range(4):
        data = _valid_bytes(64 * kind.size + start)[start:].copy().reshape(1, -1)
        values = ggml.dequantize(kind, data, 64 * kind.block)

        assert np.isfinite(values).all()
        assert ggml.is_finite(kind, data)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("used", [0, 2])
def test_a_step_multiplies(memory, name, used):
    """Every type, matrix by matrix and as experts are; as many steps as the memory holds."""
    kind = ggml.type_named(name)
    with Products(memory, kind, (64, 512), 4, used=used) as products:
        assert products.supported
        assert 4 * 64 * kind.row_bytes(512) == products.step_bytes
        assert 2 * 4 * 64 * 512 == products.step_flops
        times = [products.step() for _ in range(3)]

    assert all(0 < seconds < 60 for seconds in times)


@pytest.mark.parametrize("used", [0, 2])
def test_a_batch_multiplies(memory, used):
    """Work counts every vector; one step does, since arithmetic is what it takes."""
    with Products(memory, ggml.type_named("q4_0"), (64, 512), 4, batch=8, used=used) as products:
        assert 8 * 2 * 4 * 64 * 512 == products.step_flops
        assert products.step() > 0


@pytest.mark.parametrize("name", ["f16", "q8_0", "q4_0"])
def test_a_token_attends(memory, name):
    """To keys and values of two blocks, in as many steps as the memory holds."""
    kind = ggml.type_named(name)
    with Attention(memory, kind, 1, cells=512, heads=2, sharing=4, blocks=2) as attention:
        assert attention.supported
        assert 2 * 2 * 2 * 512 * kind.row_bytes(128) == attention.step_bytes
        assert all(0 < attention.step() < 60 for _ in range(3))


def test_a_batch_attends(memory):
    """Keys times queries, and shares times values: two FLOP for each number, twice."""
    kind = ggml.type_named("f16")
    with Attention(memory, kind, 70, cells=256, heads=2, sharing=4) as attention:
        assert 2 * 2 * 70 * 256 * (2 * 4) * 128 == attention.step_flops
        assert attention.step() > 0


@pytest.mark.parametrize(
    ("queries", "cells", "heads", "sharing", "blocks"),
    [
        (0, 512, 2, 4, 1),
        (1, 0, 2, 4, 1),
        (1, 512, 2, 0, 1),
        (1, 512, 1 << 40, 4, 1),
        (1, 9, 1, 1, -1),
    ],
)
def test_what_nobody_attends_to_is_refused(memory, queries, cells, heads, sharing, blocks):
    """Nor what the memory does not hold once."""
    with pytest.raises(EngineError, match="no attention"):
        Attention(memory, ggml.type_named("f16"), queries, cells, heads, sharing, blocks)
    with pytest.raises(EngineError, match="too few"):
        Attention(memory, ggml.type_named("f16"), 1, 1 << 19, 2, 4)


def test_sums_take_their_time(memory):
    """More of them take longer; none, and absurdly many, are refused."""
    with Sums(memory.backend, 1) as one, Sums(memory.backend, 4000) as many:
        assert min(one.step() for _ in range(9)) < min(many.step() for _ in range(9))
    for count in (0, 1 << 40):
        with pytest.raises(EngineError, match="no sums"):
            Sums(memory.backend, count)


@pytest.mark.parametrize(
    ("shape", "count", "batch", "used"),
    [
        ((0, 512), 1, 1, 0),
        ((64, 500), 1, 1, 0),
        ((64, 512), 0, 1, 0),
        ((64, 512), 3, 1, 2),
        ((64, 512), 4, 1, -2),
        ((64, 512), 1, 0, 0),
        ((1 << 40, 512), 1, 1, 0),
        ((1 << 16, 8192), 1, 1, 0),
    ],
)
def test_what_cannot_be_multiplied_is_refused(memory, shape, count, batch, used):
    """ggml would end the process."""
    with pytest.raises(EngineError):
        Products(memory, ggml.type_named("q4_0"), shape, count, batch, used)


def test_a_rearranged_layout_refuses_other_types():
    """Of layouts that a CPU has of its own, each multiplies some types; the plain one all."""
    with Backend("CPU", 1) as backend:
        *extra, plain = backend.layouts()
        for layout in extra:
            with (
                Buffer(backend, 4 * MEBI, layout) as memory,
                Products(memory, ggml.type_named("iq1_m"), (64, 512)) as products,
            ):
                assert not products.supported
                with pytest.raises(EngineError, match="does not multiply iq1_m"):
                    products.step()
        with (
            Buffer(backend, 4 * MEBI, plain) as memory,
            Products(memory, ggml.type_named("iq1_m"), (64, 512)) as products,
        ):
            assert products.supported


def test_devices_threads_and_sizes_are_checked():
    """Unknown devices, no threads, and more memory than there can be."""
    with pytest.raises(EngineError, match="there is no device 'gpu7'"):
        Backend("gpu7")
    with Backend("CPU", 1) as backend:
        for threads in (0, 513):
            with pytest.raises(EngineError, match="wanted 1 or more"):
                backend.set_threads(threads)
        for size in (0, -1, 1 << 60):
            with pytest.raises(EngineError, match="bytes for weights"):
                Buffer(backend, size)
    with pytest.raises(EngineError, match="closed"):
        Buffer(backend, MEBI)


def test_what_was_used_is_given_back():
    """Measuring again and again takes no more memory."""

    def once():
        with Backend("CPU", 1) as backend, Buffer(backend, 8 * MEBI) as memory:
            for name in ("q4_0", "q6_k"):
                with Products(memory, ggml.type_named(name), (64, 512), 4, used=2) as products:
                    products.step()

    once()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        once()

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_copies_are_timed(memory):
    """However much is asked for, no more is copied than the memory holds."""
    assert 0 < memory.copy(MEBI) < 60
    assert 0 < memory.copy(1 << 40) < 60


def test_the_cpu_is_measured(monkeypatch):
    """Rates for all types asked for, in both layouts where there are two; no link to itself."""
    monkeypatch.setattr(bandwidth, "_span", lambda device: 32 * MEBI)
    cpu = next(device for device in llama.devices() if device.kind == "cpu")
    told = []

    rates = measure_rates(cpu, 1, ("q8_0", "q4_k", "iq2_xxs"), 0.1, tell=lambda *n: told.append(n))

    plain, own = rates.plain, rates.rearranged
    assert {"q8_0", "q4_k", "iq2_xxs"} == plain.by_type.keys()
    assert plain.by_type.keys() == plain.batches.keys() == plain.experts.keys()
    assert own.by_type.keys() == own.batches.keys() == own.experts.keys() <= plain.by_type.keys()
    for kernels in (plain, own):
        assert all(1e6 < rate < 1e13 for rate in kernels.by_type.values())
        assert all(1e6 < rate < 1e15 for rate in {**kernels.batches, **kernels.experts}.values())
    assert min(plain.batches.values()) <= rates.flops <= max(plain.batches.values())
    assert {"f16", "q8_0", "q4_0"} == rates.caches.keys() == rates.attention.keys()
    assert all(1e6 < rate < 1e13 for rate in rates.caches.values())
    assert all(1e6 < rate < 1e15 for rate in rates.attention.values())
    assert 0 == rates.link
    assert rates.turn > 0 and rates.operation >= 0
    assert [(0, 3), (1, 3), (2, 3), (3, 3)] == told


def test_a_type_that_ggml_lacks_is_an_error():
    """Before anything is measured."""
    with pytest.raises(PlanError, match="unknown type"):
        measure_rates(Device("CPU", "", "cpu", 0, 0), 1, ["q9_k"])


def test_a_full_device_is_not_measured():
    """What is free must do for more than caches hold."""
    with pytest.raises(EngineError, match="too few to measure"):
        measure_rates(Device("CPU", "", "cpu", MEBI, 1 << 34), 1)


@pytest.mark.parametrize(
    ("times", "found", "calm"),
    [
        ([5.0, 4.0, 4.1, 4.2, 4.3, 4.4, 4.5, 4.6, 4.7, 4.8, 4.9], 4.5, True),
        ([9.0, 1.0] + 10 * [9.0] + 9 * [1.1] + [60.0], 1.0, False),
    ],
)
def test_the_fastest_step_counts_on_a_busy_machine(times, found, calm, monkeypatch):
    """Nothing makes a step faster than it is."""
    steps = iter([100.0, *times])
    monkeypatch.setattr(bandwidth, "_MOST", len(times))
    seconds, was_calm = bandwidth._fast_end(lambda: next(steps), 60.0)

    assert was_calm == calm
    assert abs(seconds - found) < 0.1


def test_what_was_held_up_is_told_from_one_thread():
    """Of three types two gained by two threads; the third's threads waited for each other."""
    samples = {
        (0, 0, "q4_0"): Sample(12.0, 4.0, 2.0),
        (0, 0, "q8_0"): Sample(12.0, 3.0, 1.5),
        (0, 0, "q4_k"): Sample(12.0, 2.0, 6.0, calm=False),
        (1, 0, "q4_k"): Sample(12.0, 2.0, 4.0, calm=False),
        (0, 1, "q4_k"): Sample(12.0, 3.0, 2.0),
    }
    plain, own = (bandwidth._kernels(samples, layout, calm=True) for layout in (0, 1))
    assert {"q4_0": 6.0, "q8_0": 8.0, "q4_k": 12.0} == plain.by_type
    assert {"q4_k": 12.0} == plain.batches
    assert {"q4_k": 6.0} == own.by_type
    assert 8.0 == bandwidth._kernels(samples, 1, calm=False).by_type["q4_k"]


BESIDE = """
import functools, json, sys
from gemcut import llama
from gemcut.runtime.machine import bandwidth, profiles

bandwidth._span = lambda device: 32 << 20
bandwidth.TYPES = ("q8_0", "q4_k")
profiles.measure_rates = functools.partial(bandwidth.measure_rates, seconds=0.2)
name, = llama.add_rpc(sys.argv[1])
device = next(device for device in llama.devices() if device.name == name)
rates = profiles.measure_rates(device, 1)
profile = profiles.this_machine(1, profiles.Path(sys.argv[2]))
print(json.dumps([rates.plain.by_type, rates.flops, rates.link, rates.turn, profile.to_dict()]))
"""


def test_a_device_of_another_machine_is_measured(tmp_path):
    """Over loopback: its rates, its link, and a profile that does not say where it is."""
    endpoint, written = beside_a_device(BESIDE, tmp_path)
    by_type, flops, link, turn, profile = json.loads(written.splitlines()[-1])

    assert {"q8_0", "q4_k"} == by_type.keys()
    assert min(*by_type.values(), flops, link) > 1e6
    assert 0 < turn < 60
    assert ["gpu0"] == [card["name"] for card in profile["cards"]]
    assert profile["sync"] > 0
    assert endpoint not in json.dumps(profile)
    assert str(tmp_path) not in json.dumps(profile)


@pytest.mark.parametrize(("tick", "clock"), [(1e-7, "process_time"), (1e6, "perf_counter")])
def test_a_clock_that_counts_in_long_steps_is_not_asked(tick, clock, monkeypatch):
    """A step of the model's would have taken no time at all."""
    clocks = {"process_time": lambda: time.process_time() // tick * tick}
    clocks["perf_counter"] = time.perf_counter
    monkeypatch.setattr(backend, "process_time", clocks["process_time"])
    backend._tells_a_step.cache_clear()
    try:
        with backend.Backend(threads=1) as cpu:
            assert cpu.clock is clocks[clock]
        with backend.Backend(threads=2) as cpu:
            assert cpu.clock is time.perf_counter
    finally:
        backend._tells_a_step.cache_clear()
