"""Machine profiles: as files, by name, and with limits."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.errors import OutputError, ProfileError, UsageError
from gemcut.profile import Kernels, Processor, Profile
from gemcut.runtime.machine import cards
from gemcut.runtime.machine.bandwidth import TYPES
from gemcut.runtime.machine.cards import known_names, named, slowest
from gemcut.runtime.machine.datasheets import CHIPS, CORE
from gemcut.runtime.machine.profiles import open_profile, with_limits

GIBI = 1 << 30

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
    flops=st.just(0.0) | rates,
    link=st.just(0.0) | rates,
    source=st.sampled_from(["measured", "data sheet", "assumed"]),
    batches=by_type,
    experts=by_type,
    rearranged=st.builds(Kernels, by_type, by_type, by_type),
    caches=by_type,
    attention=by_type,
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
        damaged(host_bandwidth=1e-300),
        damaged(host_link=1e-300),
        damaged(host_attention={"f16": 0.5}),
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


def test_files_from_before_layouts_were_measured_are_read():
    """They have neither batches by type nor a CPU's own layouts."""
    found = Profile.from_dict(damaged(host_batches=None, host_experts=None), "it")
    assert {} == found.host.rearranged.by_type
    document = damaged(host_batches=None, host_experts=None, host_rearranged=None)
    assert found == Profile.from_dict(document, "it")
