"""What is asked of single tensors and of types holds, or is refused: rules, floors, types."""

import re
from dataclasses import replace

import pytest

from gemcut import api, ggml
from gemcut.errors import BudgetError, PlanError, UsageError
from gemcut.quantize.export import layout
from gemcut.quantize.request import Rule, parse_rule
from gemcut.roles import role_of
from gemcut.runtime.machine.cards import named
from tests.plans import (
    check,
    make,
    pc,
    probed,
)


def test_rules_hold(demo):
    """Types and places, each alone and together, and several for one tensor."""
    written = [
        "blk.*.attn_[qk].weight=q8_0,q6_k",
        "blk.0.*=cpu",
        "blk.0.attn_q.weight=q6_k,q5_k",
        "blk.*.ffn_down_exps.weight=cpu",
        "token_embd.weight=q8_0",
    ]
    plan = make(demo, pc(), rules=tuple(map(parse_rule, written)), prefer="speed").plan

    assert plan.tensors["blk.0.attn_q.weight"].type == "q6_k"
    assert plan.tensors["token_embd.weight"].type == "q8_0"
    for name, entry in plan.tensors.items():
        if re.fullmatch(r"blk\.\d\.attn_[qk]\.weight", name):
            assert entry.type in ("q8_0", "q6_k")
        if name.startswith("blk.0.") or ".ffn_down_exps.weight" in name:
            assert entry.device == "cpu"


def test_a_rule_for_a_card_is_for_no_other_card(demo):
    """There may be eleven of them."""
    machine = named("+".join(["rtx-4070"] * 11))
    plan = make(demo, machine, rules=(Rule("blk.5.ffn_norm.weight", device="gpu1"),)).plan

    assert plan.tensors["blk.5.ffn_norm.weight"].device == "gpu1"


def test_floors_hold(demo):
    """Of a role; "experts" are all kinds of them."""
    floors = {"experts": "q5_0", "attention": "q8_0"}
    plan = make(demo, size=6_000_000, floors=floors).plan

    for name, entry in plan.tensors.items():
        role, kind = role_of(name), ggml.type_named(entry.type)
        if role.is_expert:
            assert kind.bpw >= 5.5
        if role.name == "attention":
            assert kind.bpw >= 8.5


FUSED, GATE = "*.ffn_gate_up_exps.weight", "*.ffn_gate_exps.weight"


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"rules": (Rule(FUSED, ("q8_0",)),)}, "gate|up|gate_up"),
        ({"rules": (Rule(GATE, ("q8_0",)),)}, "gate"),
        ({"floors": {"experts_gate_up": "q8_0"}}, "gate|up|gate_up"),
    ],
)
@pytest.mark.parametrize("whole", [0.001, 1000.0])
def test_what_is_asked_of_a_fused_tensor_holds_however_it_is_written(demo, asked, names, whole):
    """What is said of the whole is said of its parts; of a part, then it is written apart."""
    plan = make(demo, size=5_800_000, sensitivity=probed(demo, whole=whole), **asked).plan

    found = {n: e.type for n, e in plan.tensors.items() if re.search(rf"ffn_({names})_exps\.w", n)}
    assert found
    assert set(found.values()) == {"q8_0"}


def test_an_output_can_be_left_on_the_host(demo):
    """Blocks are on the card all the same."""
    output = replace(demo.tensors[0], name="output.weight")
    untied = replace(demo, tensors=(*demo.tensors, output))
    plan = make(untied, pc(), rules=(Rule("output.weight", device="cpu"),)).plan

    assert plan.tensors["output.weight"].device == "cpu"
    assert {e.device for n, e in plan.tensors.items() if n.startswith("blk.")} == {"gpu0"}
    assert layout(plan).host == (r"^output\.weight$",)


def test_a_tied_output_on_the_host_takes_the_blocks_along(demo):
    """Which llama.cpp's order demands, and the planner says."""
    outcome = make(demo, pc(), rules=(Rule("token_embd.weight", device="cpu"),))

    assert {entry.device for entry in outcome.plan.tensors.values()} == {"cpu"}
    assert any("every block is computed there" in note for note in outcome.notes)


def test_places_that_llama_cpp_cannot_give_are_named(demo):
    """It fills the host first: no block behind one on a card is at home there."""
    rules = (Rule("blk.0.attn_q.weight", device="gpu0"), Rule("blk.5.attn_q.weight", device="cpu"))

    with pytest.raises(BudgetError, match=r"the rules give to blk\.0\.attn_q\.weight and 1 more"):
        make(demo, pc(), rules=rules)


def test_a_block_that_cannot_be_is_refused(demo):
    """Before anything is made of so many."""
    tensors = (replace(demo.tensors[-1], name="blk.999999999.ffn_up.weight"), *demo.tensors)

    with pytest.raises(PlanError, match="one of them in block 999999999"):
        make(replace(demo, tensors=tensors), size=6_000_000)


def test_only_the_types_asked_for_are_chosen(demo):
    plan = make(demo, bpw=7, types=("q4_0", "Q8_0")).plan

    assert {entry.type for entry in plan.tensors.values()} == {"q4_0", "q8_0", "f32"}


def test_all_types_reach_below_the_limits(demo):
    """Which are kept otherwise."""
    plan = make(demo, size=2_400_000, all_types=True).plan

    assert api.planned_size(demo, plan) <= 2_400_000
    with pytest.raises(AssertionError):
        check(demo, plan)


def test_speed_stays_within_the_default_range(demo):
    plan = make(demo, pc(), prefer="speed").plan

    check(demo, plan, floors=(4.25, 5.5))


WRONG = {
    "unmatched": (("blk.9.*=q6_k",), PlanError, "no tensor has such a name"),
    "no type in common": (("*attn_q*=q6_k", "blk.1.*=q4_k"), PlanError, "contradict"),
    "two places": (("blk.*=gpu0", "blk.1.*=cpu"), PlanError, "contradict"),
    "no such place": (("blk.*=gpu3",), PlanError, "this machine has cpu, gpu0"),
    "does not fit": (("blk.0.attn_q.weight=nvfp4",), PlanError, "it can be"),
    "needs importance": (("token_embd.weight=iq2_xxs",), PlanError, "it can be"),
    "never cut": (("blk.*_norm.weight=q8_0",), PlanError, "never cut"),
    "unknown type": (("blk.*=q9_k",), PlanError, "q9_k"),
    "two words for a place": (("blk.*=cpu,gpu0",), UsageError, "one place"),
    "no value": (("blk.*",), UsageError, "wanted PATTERN"),
}


@pytest.mark.parametrize("rules", WRONG)
def test_rules_that_cannot_be_meant_are_refused(demo, rules):
    written, kind, words = WRONG[rules]
    with pytest.raises(kind, match=words):
        make(demo, pc(), rules=tuple(map(parse_rule, written)))


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ({"size": 0}, UsageError, "size is 0"),
        ({"bpw": float("nan")}, UsageError, "bpw is nan"),
        ({"bpw": -1.0}, UsageError, "bpw is -1"),
        ({"max_kld": float("inf")}, UsageError, "max-kld is inf"),
        ({"min_speed": 0.0}, UsageError, "min-speed is 0"),
        ({"size": 1, "bpw": 4.0}, UsageError, "give one"),
        ({"prefer": "best"}, UsageError, "wanted speed, balance, quality"),
        ({"types": ()}, UsageError, "types"),
        ({"types": ("q4_0",), "all_types": True}, UsageError, "not both"),
        ({"types": ("q4_9",)}, PlanError, "q4_9"),
        ({"types": ("iq4_xs",), "plain": True}, PlanError, "none of the types asked for"),
        ({"floors": {"experts": "q99"}}, PlanError, "q99"),
        ({"floors": {"brain": "q4_0"}}, UsageError, "no such role"),
        ({"rules": (Rule("*attn_q*", device="gpu0"),)}, PlanError, "no machine is planned for"),
    ],
)
def test_what_cannot_be_meant_is_refused(demo, asked, kind, words):
    with pytest.raises(kind, match=words):
        make(demo, **asked)
