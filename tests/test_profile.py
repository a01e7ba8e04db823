"""Machine profiles: as files, by name, of this machine, and with limits."""

import json
import os
import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from gemcut.cli import main
from gemcut.engine import Device
from gemcut.errors import EngineError, OutputError, ProfileError, UsageError
from gemcut.profile import Kernels, Processor, Profile
from gemcut.runtime.machine import cards, profiles
from gemcut.runtime.machine.bandwidth import TYPES, Rates
from gemcut.runtime.machine.cards import known_names, named, slowest
from gemcut.runtime.machine.datasheets import CHIPS, CORE
from gemcut.runtime.machine.inspection import inspect_machine
from gemcut.runtime.machine.profiles import open_profile, this_machine, usable_cards, with_limits

GIBI = 1 << 30
PLAIN = Kernels({"q8_0": 8.123456e9, "q4_k": 4e9}, {"q4_k": 8e10}, {"q4_k": 10e10})
OWN = Kernels({"q4_k": 5e9}, {"q4_k": 9e10}, {"q4_k": 4e10})
RATES = Rates(PLAIN, OWN, 3e10, 0.0, 2e-6, 9e-6, True)

amounts = st.floats(0, 1e15)
rates = st.floats(1, 1e15)
names = st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=40).filter(
    str.isprintable
)
by_type = st.dictionaries(st.sampled_from(TYPES), rates)
processors = st.builds(
    Processor,
    name=st.just("cpu"),
    description=names,
    memory=st.integers(0, 1 << 45),
    reserve=st.integers(0, 1 << 40),
    bandwidth=rates,
    by_type=by_type,
    flops=amounts,
    link=amounts,
    source=st.sampled_from(["measured", "data sheet", "assumed"]),
    batches=by_type,
    experts=by_type,
    rearranged=st.builds(Kernels, by_type, by_type, by_type),
)
machines = st.builds(
    lambda profile, cards: profile.with_cards(tuple(cards)),
    st.builds(Profile, names, processors, st.just(()), amounts, amounts, st.floats(0, 1)),
    st.lists(processors, max_size=3),
)


@given(machines)
def test_a_profile_is_what_its_file_says(profile):
    """Reading what was written gives the same profile, and the same text."""
    text = profile.to_json()

    assert profile == Profile.from_json(text, "it")
    assert text == Profile.from_json(text, "it").to_json()
    assert profile == Profile.from_dict(json.loads(text), "it")
    assert (profile.host, *profile.cards) == profile.places


def damaged(**changes):
    """A profile's data with something else in some fields; None: without them."""
    document = named("rtx-4070+ddr5-5600").to_dict()
    for path, value in changes.items():
        where = document["host"] if path.startswith("host_") else document
        key = path.removeprefix("host_")
        if value is None:
            del where[key]
        else:
            where[key] = value
    return document


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        damaged(version=1),
        damaged(version=True),
        damaged(version=None),
        damaged(extra=1),
        damaged(doubt=2),
        damaged(doubt=None),
        damaged(operation=-1),
        damaged(sync="soon"),
        damaged(cards={}),
        damaged(cards=[named("rtx-4070").to_dict()["host"]]),
        damaged(name="two\nlines"),
        damaged(host="cpu"),
        damaged(host_name="gpu0"),
        damaged(host_name="CUDA0"),
        damaged(host_memory=1.5),
        damaged(host_memory=-1),
        damaged(host_memory=1 << 60),
        damaged(host_bandwidth=0),
        damaged(host_bandwidth=1e-320),
        damaged(host_by_type={"q4_k": 0}),
        damaged(host_by_type=[1]),
        damaged(host_batches={"q4_k": -1}),
        damaged(host_rearranged={}),
        damaged(host_rearranged=None, host_experts=[]),
        damaged(host_source="hearsay"),
        damaged(host_description="x" * 201),
        damaged(host_flops=float("inf")),
        damaged(host_link=None),
    ],
)
def test_a_damaged_profile_is_refused(document, tmp_path):
    """With the file's name, in one line."""
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ProfileError, match="machine.json"):
        Profile.read(path)


@pytest.mark.parametrize("text", ["", "{", '{"version": 1', '{"version": 1, "version": 1}', "\0"])
def test_what_is_no_json_is_refused(text, tmp_path):
    """Cut off, empty, or with a name that is there twice."""
    (tmp_path / "m.json").write_text(text)
    for path in (tmp_path / "m.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(ProfileError):
            Profile.read(path)
    with pytest.raises(OutputError):
        named("rtx-4070").write(tmp_path / "none" / "m.json")


def test_rates_are_by_type():
    """In any spelling of the type; what is not listed has the usual rate."""
    place = Processor("cpu", "", 10, 3, 5.0, {"q4_k": 2.0})

    assert (2.0, 2.0, 5.0) == (place.rate("q4_k"), place.rate("Q4_K"), place.rate("q6_k"))
    assert (7, 0) == (place.room, replace(place, reserve=11).room)


@pytest.mark.parametrize("name", known_names())
def test_every_name_is_a_machine(name):
    """Figures of a sensible size, a file that reads back, labelled as what they are."""
    profile = named(name)
    is_card = bool(profile.cards) and name not in CHIPS

    assert ("assumed" if is_card else "data sheet") == profile.host.source
    assert all(card.source == "data sheet" for card in profile.cards)
    assert all(4e9 < place.bandwidth < 5e12 for place in profile.places)
    assert all(1e11 < place.flops < 1e15 for place in profile.places)
    assert all(3 * GIBI < card.room < card.memory or not is_card for card in profile.cards)
    assert all(5e9 < card.link < 6e11 for card in profile.cards)
    assert profile == Profile.from_json(profile.to_json(), name)


def test_names_are_unlike():
    """However they are spelled."""
    assert len(known_names()) == len({cards._squeezed(name) for name in known_names()})
    assert set(CORE) == set(TYPES)


def test_parts_are_put_together():
    """Cards in their order, one host; spelling does not matter."""
    profile = named("RTX 3090 + rtx3060+DDR5-5600x4@16@64G")

    assert ["cpu", "gpu0", "gpu1"] == [place.name for place in profile.places]
    assert ["NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 3060"] == [
        card.description for card in profile.cards
    ]
    assert 64_000_000_000 == profile.host.memory
    assert "16 cores, DDR5-5600 x4" == profile.host.description
    assert pytest.approx(0.65 * 4 * 8 * 5600e6) == profile.host.bandwidth
    assert pytest.approx(0.65 * 936e9) == profile.cards[0].rate("q4_k")
    assert named("ddr5-5600") == replace(named("ddr5-5600x2@8@32GiB"), name="ddr5-5600")
    assert () == named("ddr4-3200x1").cards


def test_few_cores_are_slow_with_low_bit_types():
    """What one core computes bounds what the memory feeds; enough cores make it the memory."""
    one, many = named("ddr5-6400x2@1").host, named("ddr5-6400x2@64").host

    assert pytest.approx(1e9 * CORE["iq2_xxs"]) == one.rate("iq2_xxs")
    assert one.rate("iq2_xxs") < one.rate("q4_k") < one.bandwidth
    assert many.rate("iq2_xxs") == many.rate("q8_0") == many.bandwidth == one.bandwidth
    assert pytest.approx(64 * one.flops) == many.flops


def test_a_hybrid_run_that_was_published_comes_out():
    """Qwen3.5-35B-A3B in Q4_K_M, RTX 5080 and DDR5-4800: a block whose experts are on the host
    cost 0.325 ms more, for 15.3 MB."""
    profile = named("rtx-5080+ddr5-4800")

    seconds = 15.3e6 / profile.host.rate("q4_k") + profile.sync

    assert abs(seconds / 0.325e-3 - 1) < 0.05


def test_a_prompt_that_was_published_comes_out():
    """gpt-oss-120b on an RTX 3090: 0.304 ms for a token's 2 x 5.1e9 operations, copies aside."""
    assert abs(2 * 5.1e9 / named("rtx-3090").cards[0].flops / 3.04e-4 - 1) < 0.1


def test_a_chip_shares_its_memory():
    """What graphics may take is not the host's, too; other sizes can be named."""
    small, large = named("m1@16GiB"), named("M3 Max@128GiB@4")

    assert (16 * GIBI, 128 * GIBI) == tuple(
        sum(place.memory for place in machine.places) for machine in (small, large)
    )
    assert 16 * GIBI * 2 // 3 == small.cards[0].memory
    assert 96 * GIBI == large.cards[0].memory
    assert pytest.approx(4e9 * CORE["iq3_s"]) == large.host.rate("iq3_s")


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "+",
        "rtx-9999",
        "rtx-4070@2",
        "rtx-4070+",
        "rtx-4070+m3-max",
        "m3-max+rtx-4070",
        "m3-max@0",
        "m3-max@64G@32G",
        "ddr5-5600+ddr4-3200",
        "ddr5-5601",
        "ddr6-5600",
        "ddr5-5600x3",
        "ddr5-5600x0",
        "ddr5-5600@0",
        "ddr5-5600@-1",
        "ddr5-5600@8@8@8",
        "ddr5-5600@12GG",
        "ddr5-5600@1M",
        "ddr5-5600@",
        "+".join(17 * ["rtx-4070"]),
    ],
)
def test_a_name_that_is_none_is_refused(spec):
    """In words; what is known is listed."""
    with pytest.raises(UsageError):
        named(spec)


def test_what_is_known_is_listed():
    """All of it, or the speeds of a kind that is known."""
    with pytest.raises(UsageError, match="rtx-4070, .*m3-max, .*ddr5-5600"):
        named("rtx-9999")
    with pytest.raises(UsageError, match="wanted ddr5-4400, .*ddr5-8000$"):
        named("ddr5-5601")


def test_limits_are_totals():
    """Of cards that are known, and of the host; reserves stay as they are."""
    profile = named("rtx-3090+rtx-3060+ddr5-5600")

    found = with_limits(profile, [20 * GIBI], 64 * GIBI)

    assert [20 * GIBI] == [card.memory for card in found.cards]
    assert profile.cards[0].reserve == found.cards[0].reserve
    assert profile.cards[0].bandwidth == found.cards[0].bandwidth
    assert (64 * GIBI, profile.host.reserve) == (found.host.memory, found.host.reserve)
    assert (profile.doubt, profile.sync) == (found.doubt, found.sync)
    assert profile == with_limits(profile, None, None)
    assert (0, 0) == (
        with_limits(profile, None, 0).host.memory,
        with_limits(profile, None, 0).host.room,
    )


def test_cards_that_are_not_there_are_assumed():
    """The slowest with so much memory, labelled, and trusted less."""
    profile = named("ddr5-5600")

    found = with_limits(profile, [12_000_000_000, 8 * GIBI], None)

    assert ["gpu0", "gpu1"] == [card.name for card in found.cards]
    assert ["assumed", "assumed"] == [card.source for card in found.cards]
    assert [12_000_000_000, 8 * GIBI] == [card.memory for card in found.cards]
    assert "RTX 4060 Ti 16 GB" in found.cards[0].description
    assert found.doubt > profile.doubt
    assert found.sync > 0


@given(st.integers(GIBI, 141 * GIBI))
def test_no_known_card_is_slower_than_the_assumed_one(memory):
    """Among common cards, or where none is large enough, among those of workstations."""
    card = slowest(memory, "gpu3")
    desktop = [named(n).cards[0] for n in known_names() if n.startswith(("gtx", "rtx-", "rx", "a"))]

    assert ("gpu3", memory, "assumed") == (card.name, card.memory, card.source)
    assert all(
        other.bandwidth >= card.bandwidth
        for other in desktop
        if memory <= other.memory <= 32 * GIBI and "Tesla" not in other.description
    )


@pytest.mark.parametrize(
    ("vram", "ram"),
    [
        ([0], None),
        ([-1], None),
        ([GIBI // 2], None),
        ([1 + (1 << 50)], None),
        (None, -1),
        (None, GIBI),
    ],
)
def test_impossible_limits_are_refused(vram, ram):
    """Nothing, less than nothing, less than is taken, more than there is."""
    with pytest.raises(UsageError):
        with_limits(named("rtx-4070+ddr5-5600"), vram, ram)
    with pytest.raises(UsageError):
        with_limits(named("ddr5-5600"), vram, ram)


def test_a_profile_is_opened_by_name_or_path(tmp_path):
    """A file wins over a name; what looks like a path is one."""
    path = tmp_path / "machine.json"
    named("rtx-4070").write(path)

    assert named("rtx-4070") == open_profile(str(path)) == open_profile("rtx-4070")
    with pytest.raises(ProfileError, match="cannot be read"):
        open_profile(str(tmp_path / "none.json"))
    with pytest.raises(UsageError):
        open_profile("none")


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


def test_files_from_before_layouts_were_measured_are_read():
    """They have neither batches by type nor a CPU's own layouts."""
    found = Profile.from_dict(damaged(host_batches=None, host_experts=None), "it")
    assert {} == found.host.rearranged.by_type
    document = damaged(host_batches=None, host_experts=None, host_rearranged=None)
    assert found == Profile.from_dict(document, "it")


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
