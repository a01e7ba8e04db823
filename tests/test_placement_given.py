"""Placement around what was given, and with the places that a file carries."""

import json
import re
from dataclasses import replace

import pytest

from gemcut.engine import ContextOptions
from gemcut.errors import GemcutError, PlanError, UsageError
from gemcut.gguf_file import GGUFFile, Value
from gemcut.plan import Plan
from gemcut.runtime.placement.carried import context_of
from gemcut.runtime.placement.given import ALL, Given
from gemcut.runtime.placement.placement import plan_run
from tests.hollow import GIB, MIB, check, experts_on_host, hollow, machine

EXPERTS = 96 * 1024 * 2048 * 144 // 256  # bytes of one of a block's three tensors of experts


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Four blocks, a third of a GB of experts each."""
    path = tmp_path_factory.mktemp("hollow") / "m.gguf"
    with GGUFFile(hollow(path, experts=96)) as opened:
        yield opened


# --- what was given ---


def test_flags_of_the_context_are_kept(file):
    given = Given(
        n_ctx=5000, n_seq=2, n_batch=300, n_ubatch=200, type_k="q4_0", type_v="f16", threads=3,
        swa_full=True, n_outputs=7, load_mode="direct_io", repack=False, no_host=True,
        op_offload=False,
    )  # fmt: skip
    found = plan_run(file, machine(12 * GIB), given)
    wanted = ContextOptions(5000, 300, 200, 2, 3, True, True, "q4_0", "f16", 7, op_offload=False)
    assert found.context == replace(wanted, kv_unified=True)
    model = found.model
    assert (model.load_mode, model.repack, model.no_host) == ("direct_io", False, True)


@pytest.mark.parametrize(
    ("layers", "homes"),
    [(0, "cccc"), (1, "cccc"), (2, "cccg"), (4, "cggg"), (5, "gggg"), (-1, "gggg")],
)
def test_gpu_layers(file, layers, homes):
    """The last ones; the output is one of them."""
    found = plan_run(file, machine(12 * GIB), Given(gpu_layers=layers))
    assert "".join(found.places[f"blk.{n}.attn_q.weight"][0] for n in range(4)) == homes
    assert found.places["output.weight"] == ("gpu0" if layers else "cpu")
    assert found.model.gpu_layers == (layers if layers >= 0 else 5)
    assert found.origin == "given"
    check(found)


@pytest.mark.parametrize(("blocks", "kept"), [(0, 0), (2, 6), (ALL, 12)])
def test_experts_on_the_host(file, blocks, kept):
    """Of the first blocks; those that fit nowhere else stay there, too."""
    found = plan_run(file, machine(12 * GIB), Given(cpu_moe=blocks))
    assert len(experts_on_host(found)) == kept
    tight = plan_run(file, machine(2 * GIB), Given(n_ctx=4096, cpu_moe=blocks))
    assert len(experts_on_host(tight)) >= kept
    check(tight)


def test_overrides_come_first(file):
    """What they name is where they say, whatever else of the block is."""
    overrides = ((r"blk\.1\.attn", "CPU"), (r"blk\.2\.ffn_down_exps", "B"), ("output", "A"))
    given = Given(overrides=overrides, devices=("A", "B"), tensor_split=(3, 1))
    found = plan_run(file, machine(12 * GIB, 12 * GIB), given)
    assert found.places["blk.1.attn_q.weight"] == "cpu"
    assert found.places["blk.1.ffn_up_exps.weight"] == "gpu0"
    assert found.places["blk.2.ffn_down_exps.weight"] == "gpu1"
    assert found.places["output.weight"] == found.places["blk.2.attn_output.weight"] == "gpu0"
    assert found.model.overrides[:3] == overrides
    assert found.model.devices == ("A", "B")
    check(found)


def test_a_block_that_overrides_take_apart_keeps_its_caches(file):
    """All its tensors are on the host, and yet the layer is the card's."""
    found = plan_run(file, machine(12 * GIB), Given(n_ctx=4096, overrides=((r"blk\.2\.", "CPU"),)))
    assert found.ledger["cpu"].get("kv", 0) == 0
    assert found.model.gpu_layers == 5
    assert found.model.overrides == ((r"blk\.2\.", "CPU"),)
    check(found)


@pytest.mark.parametrize(
    ("given", "split", "cards"),
    [
        (Given(tensor_split=(1, 1)), (1, 1), ["gpu0"] * 3 + ["gpu1"] * 2),
        (Given(tensor_split=(0, 1)), (0, 1), ["gpu1"] * 5),
        (Given(tensor_split=(1, 3), gpu_layers=4), (1, 3), ["cpu", "gpu0"] + ["gpu1"] * 3),
        (Given(split_mode="none", main_gpu=1), (), ["gpu1"] * 5),
    ],
)
def test_several_cards(file, given, split, cards):
    """Divided as llama.cpp divides."""
    found = plan_run(file, machine(12 * GIB, 12 * GIB), given)
    names = [f"blk.{n}.attn_q.weight" for n in range(4)] + ["output.weight"]
    assert [found.places[name] for name in names] == cards
    assert found.model.tensor_split == split
    assert found.model.overrides[-1:] == (("^$", "CPU"),)
    check(found)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Given(overrides=(("x", "NPU7"),)), "there is no such device; wanted CPU, CUDA0$"),
        (Given(overrides=(("(", "CPU"),)), "no regular expression"),
        (Given(split_mode="none", main_gpu=4), "main GPU 4: there are 1"),
        (Given(type_v="q8_0", flash_attention=False), "need flash attention"),
        (Given(devices=()), None),
    ],
)
def test_what_cannot_be_given(file, given, words):
    profile = machine(12 * GIB)
    if words is None:
        assert set(plan_run(file, profile, given).places.values()) == {"cpu"}
        return
    given = replace(given, devices=("CUDA0",))
    with pytest.raises(UsageError, match=words):
        plan_run(file, profile, given)


def test_names_of_another_machines_cards_have_to_be_said(file, monkeypatch):
    """Here nobody knows them: the error names the cards, and the flag."""
    monkeypatch.setattr("gemcut.runtime.machine.profiles.card_names", lambda: [])
    given = Given(overrides=(("ffn_down_exps", "CUDA1"),))
    with pytest.raises(UsageError, match="calls card, card is not known .* -dev CUDA0,CUDA1$"):
        plan_run(file, machine(12 * GIB, 12 * GIB), given)
    told = plan_run(file, machine(12 * GIB, 12 * GIB), replace(given, devices=("CUDA0", "CUDA1")))
    assert told.places["blk.0.ffn_down_exps.weight"] == "gpu1"


@pytest.mark.parametrize(
    "said",
    [
        {"n_ctx": 0}, {"n_seq": 257}, {"type_k": "q9"}, {"load_mode": "fast"}, {"cpu_moe": -1},
        {"split_mode": "half"}, {"tensor_split": (-1.0,)}, {"n_ubatch": 1 << 31},
    ],
)  # fmt: skip
def test_what_nothing_is_meant_by(said):
    with pytest.raises(UsageError):
        Given(**said)


@pytest.mark.parametrize("mode", ["row", "tensor"])
def test_a_split_that_is_not_planned_for_is_said(file, mode):
    """With one card there is none."""
    said = Given(n_ctx=4096, split_mode=mode)
    (note,) = plan_run(file, machine(4 * GIB, 4 * GIB), said).notes
    assert f"split mode {mode} was not planned for" in note
    assert () == plan_run(file, machine(4 * GIB), said).notes


@pytest.mark.parametrize("kind", [Given, ContextOptions])
def test_a_number_that_llama_cpp_cannot_hold_is_told_with_the_most(kind):
    with pytest.raises(GemcutError, match="n_ctx is 1000000000000, wanted 1 to 2147483647"):
        kind(n_ctx=10**12)
    with pytest.raises(GemcutError, match="threads is 513, wanted 1 to 512"):
        kind(threads=513)


@pytest.mark.parametrize(
    ("mib", "layers", "homes"), [(1700, 2, "ccc0"), (2100, 4, "c001"), (2500, 5, "0001")]
)
def test_shares_without_a_number_of_layers(file, mib, layers, homes):
    """As many layers as fit are split so, and it is said if that is not all."""
    given = Given(n_ctx=65536, tensor_split=(1, 1), type_k="f16", type_v="f16")
    found = plan_run(file, machine(mib * MIB, mib * MIB), given)

    assert found.model.gpu_layers == layers
    assert found.model.tensor_split == (1, 1)
    named = {"c": "cpu", "0": "gpu0", "1": "gpu1"}
    assert [found.places[f"blk.{n}.attn_q.weight"] for n in range(4)] == [named[h] for h in homes]
    assert (f"{layers} of 5 layers on cards" in " ".join(found.notes)) == (layers < 5)
    check(found)


def test_a_card_without_layers_computes_prompts_where_it_has_room(file):
    """One tensor of the host's after the other: without room for the largest it does nothing."""
    wide = plan_run(file, machine(12 * GIB), Given(gpu_layers=0))
    tight = plan_run(file, machine(GIB + 300 * MIB), Given(gpu_layers=0))

    assert wide.context.op_offload and wide.ledger["gpu0"]["compute"] > EXPERTS
    assert "weights: experts" not in wide.ledger["gpu0"]
    assert not tight.context.op_offload and tight.ledger["gpu0"]["compute"] == 0
    check(wide)
    check(tight)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_blocks_on_the_host_are_staged_too(file, layers):
    """Their experts are as large as any, whether or not those of a block on the card are there."""
    found = plan_run(file, machine(2 * GIB), Given(gpu_layers=layers, n_ctx=4096))
    if found.context.op_offload:
        assert found.ledger["gpu0"]["compute"] > EXPERTS
    check(found)


def test_a_context_beyond_the_trained_one_is_said(file):
    found = plan_run(file, machine(12 * GIB), Given(n_ctx=131072))
    assert "the model was made for 65536" in found.notes[0]


# --- the file's own plan ---


def carrying(file, places, context=None, **changes):
    """The file with a plan that has its tensors at these places."""
    entries = {
        name: {"type": info.type.name, "device": places(name)}
        for name, info in file.tensors.items()
    }
    plan = {
        "version": 2, "architecture": "qwen3moe", "weights": 1, "size": 1, "request": {},
        "solver": {}, "tensors": entries, "context": context or {"n_ctx": 8192},
        "machine": {"cards": [{}]},
    } | changes  # fmt: skip
    found = GGUFFile(file.path)
    found.metadata = dict(file.metadata) | {"gemcut.plan": Value("str", json.dumps(plan))}
    return found


def last_experts_on_host(name):
    return "cpu" if "blk.3.ffn_down" in name or "token_embd" in name else "gpu0"


def test_the_places_of_a_files_plan_are_kept(file):
    """Where there is room for them, and they are about as fast as any."""
    profile, given = machine(2900 * MIB), Given(n_ctx=8192)
    free = plan_run(file, profile, given)
    carried = {name: place for name, place in free.places.items()}
    swapped = {"blk.0.ffn_up_exps.weight": "blk.0.ffn_gate_exps.weight"}
    for one, other in swapped.items():
        carried[one], carried[other] = carried[other], carried[one]
    found = plan_run(carrying(file, carried.get), profile, given)
    assert found.origin == "the file's plan"
    assert found.places == carried
    check(found)


@pytest.mark.parametrize(
    ("changes", "profile", "words"),
    [
        ({}, machine(), "for 1 cards, this machine has 0"),
        ({}, machine(1500 * MIB), "there is no room"),
        ({"version": 99}, machine(12 * GIB), "another version"),
        ({"tensors": {"x": {"type": "f32", "device": "cpu"}}}, machine(12 * GIB), "other tensors"),
        ({"context": {"n_ctx": "x"}}, machine(1500 * MIB), "context is none|no room"),
    ],
)
def test_a_plan_that_is_of_no_use_here(file, changes, profile, words):
    """It is planned anew, and said why."""
    found = plan_run(carrying(file, last_experts_on_host, **changes), profile)
    assert found.origin == "planned"
    assert any("the file carries a plan, which is not used" in note for note in found.notes)
    assert re.search(words, found.notes[-1])


def test_a_slow_plan_is_not_kept(file):
    """All experts on the host, where there is room on the card."""
    found = plan_run(
        carrying(file, lambda n: "cpu" if "exps" in n or "token_embd" in n else "gpu0"),
        machine(12 * GIB),
    )
    assert "a request would take" in found.notes[-1]
    assert not experts_on_host(found)


def test_given_places_go_before_the_files(file):
    found = plan_run(carrying(file, last_experts_on_host), machine(12 * GIB), Given(gpu_layers=3))
    assert (found.origin, found.notes) == ("given", ())


def test_a_plan_without_a_context_says_so():
    with pytest.raises(PlanError, match="says nothing of a context"):
        context_of(Plan("x", 1, 1, {}, {}))
