"""Plans keep what was asked for, say truly what would do, and predict what was measured."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut import api, ggml
from gemcut.api import Target
from gemcut.convert.model import Model
from gemcut.engine import ContextOptions
from gemcut.errors import BudgetError, GemcutError, PlanError, SensitivityError, UsageError
from gemcut.gguf_file import GGUFFile, Value
from gemcut.gguf_layout import file_size
from gemcut.llama import Context
from gemcut.llama import Model as Loaded
from gemcut.plan import Plan
from gemcut.profile import Processor, Profile
from gemcut.quantize import choose
from gemcut.quantize.candidates import error, measured
from gemcut.quantize.export import layout
from gemcut.quantize.identity import fingerprint
from gemcut.quantize.outcome import Outcome
from gemcut.quantize.planner import plan_model
from gemcut.quantize.priors import prior_sensitivity
from gemcut.quantize.request import Request, Rule, parse_rule
from gemcut.quantize.widths import paddings, splits
from gemcut.roles import role_of
from gemcut.runtime.machine.cards import named
from gemcut.runtime.machine.profiles import with_limits
from gemcut.runtime.memory.ledger import fixed, rooms
from gemcut.sensitivity import GroupWeight, Sensitivity
from gemcut.sizes import parse_size
from gemcut.tensor_sensitivity import LocalError, TensorSensitivity
from tests import checkpoints, families

KEPT = re.compile(
    r".*(_norm(_\d)?|post_ffw_norm_\d|ffn_gate_inp|layer_output_scale)\.weight|.*\.scale"
)
NEEDS_IMPORTANCE = {"iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq1_s", "iq1_m"}
QUICK = ("q3_k", "q4_0", "q5_0", "q6_k", "q8_0", "bf16")  # ggml needs no large tables for them
EVERYTHING = 20_000_000  # bytes that hold the demo's model whole
GAP = 1e-3  # of a plan
CONTEXT = ContextOptions(n_ctx=1024, n_outputs=1)
GB = 10**9
FAMILIES = ["deepseek_v3", "glm4_moe", "gpt_oss", "llama4", "mixtral", "qwen3_next"]


@pytest.fixture(scope="module")
def demo(checkpoint) -> Model:
    return api.open_source(checkpoint)


@pytest.fixture(scope="module")
def real(checkpoint, tmp_path_factory):
    """The 26B-A4B, its 262144 tokens left out: they would only take time."""
    folder = tmp_path_factory.mktemp("real") / "model"
    model = api.open_source(checkpoints.build(folder, checkpoint, checkpoints.REAL, hollow=True))
    kept = {k: v for k, v in model.metadata.items() if "tokenizer" not in k}
    yield replace(model, metadata=kept | {"gemma4.vocab_size": Value("u32", 262144)})
    shutil.rmtree(folder)


def make(model: Model, machine: Profile | None = None, weighted: bool = True, **asked) -> Outcome:
    """A plan alone, without alternatives; `sensitivity` and `context` as in a task."""
    sensitivity, context = asked.pop("sensitivity", None), asked.pop("context", CONTEXT)
    task = api.make_task(model, Request(**asked), sensitivity, None, machine, context)
    names = frozenset(importance_of(model)) if weighted else frozenset()
    return plan_model(replace(task, weighted=names), alternatives=False)


def importance_of(model: Model, without: str = "nothing") -> dict[str, ggml.Floats]:
    """Ones for all tensors but those with this in their names, and what rows are looked up in."""
    return {
        t.name: np.ones((t.matrices, t.columns), np.float32)
        for t in model.tensors
        if without not in t.name and t.quantizable and not role_of(t.name).is_lookup
    }


def pc(vram: float | None = None, ram: float | None = None, spec: str = "rtx-4070+ddr5-5600"):
    """A profile out of data sheets, with other amounts of memory, in bytes."""
    cards = None if vram is None else [int(vram)]
    return with_limits(named(spec), cards, None if ram is None else int(ram))


def small(model: Model, vram: int, ram: int) -> Profile:
    """A machine with so many bytes for a small model's tensors and caches."""
    host = Processor("cpu", "host", 0, 0, 20e9, flops=1e11)
    card = Processor("gpu0", "card", 0, 0, 200e9, flops=1e13, link=10e9)
    none = Profile("small", host, (card,), 1e-3, 2e-5)
    on_host, on_card = rooms(none, fixed(model.metadata, CONTEXT))
    host, card = replace(host, memory=ram - on_host), replace(card, memory=vram - on_card)
    return replace(none, host=host, cards=(card,))


def probed(model: Model, whole: float = 1.0) -> Sensitivity:
    """As if it had been measured, with the parts of fused tensors.

    Args:
        whole: how many times the error of its parts a fused tensor has.
    """
    names = frozenset(importance_of(model))
    prior = prior_sensitivity(model, names)
    groups = {
        name: GroupWeight(weight.weight, 0.3 * weight.weight, "probe")
        for name, weight in prior.groups.items()
    }
    tensors = dict(prior.tensors)
    for name in splits(model):
        known = prior.tensors[name]
        for part, share in (("gate", 0.4), ("up", 0.6)):
            errors = {k: LocalError(share * e.mean, e.se) for k, e in known.errors.items()}
            tensors[f"{name}#{part}"] = TensorSensitivity(known.group, errors)
        errors = {k: LocalError(whole * e.mean, e.se) for k, e in known.errors.items()}
        tensors[name] = TensorSensitivity(known.group, errors)
    return replace(prior, source=fingerprint(model), groups=groups, tensors=tensors)


def candidates_of(plan: Plan, model: Model) -> dict[str, str]:
    """What the plan writes, in a sensitivity's words."""
    apart = {
        part: f"{name}#{which}"
        for name, parts in splits(model).items()
        for which, part in zip(("gate", "up"), parts, strict=True)
    }
    said = {}
    for name, entry in plan.tensors.items():
        kind, padded = ggml.type_named(entry.type), entry.padded_to or 0
        alone = ".ffn_down" not in name or kind.fits(padded and columns_of(model, name))
        said[apart.get(name, name)] = entry.type if alone else f"{entry.type}@{padded}"
    return said


def columns_of(model: Model, name: str) -> int:
    return next(tensor.columns for tensor in model.tensors if tensor.name == name)


def check(model: Model, plan: Plan, weighted: bool = True, floors: tuple[float, float] = (2, 4.25)):
    """Kept tensors are F32; types are within the limits, and need no importance that is missing."""
    kinds = {name: ggml.type_named(entry.type) for name, entry in plan.tensors.items()}
    for name, kind in kinds.items():
        if KEPT.fullmatch(name) or name == "rope_freqs.weight":
            assert kind.name == "f32", name
            continue
        assert kind.bpw >= floors[not role_of(name).is_expert], (name, kind)
        unweighted = not weighted or name == "token_embd.weight"
        assert not (unweighted and kind.name in NEEDS_IMPORTANCE), (name, kind)


def check_ledger(machine: Profile, plan: Plan) -> None:
    """What a place holds is within its memory, and all of it is told."""
    for place in machine.places:
        page = plan.ledger[place.name]
        assert sum(page.values()) == place.memory
        if place.memory:
            assert page["free"] >= 0, (place.name, page)
    weights = [
        bytes_
        for page in plan.ledger.values()
        for what, bytes_ in page.items()
        if what.startswith("weights")
    ]
    assert sum(weights) >= plan.size  # a table that is looked up in stands twice


# --- a size ---


@given(size=st.integers(0, EVERYTHING), weighted=st.booleans())
@settings(max_examples=15)
def test_a_file_is_never_larger_than_asked(demo, size, weighted):
    """And little is left over: less than the largest step of one tensor."""
    try:
        plan = make(demo, weighted=weighted, size=size or 1).plan
    except BudgetError as error:
        assert size < would_do(error, "file")
        return

    written = api.planned_size(demo, plan)
    assert written <= size
    assert written > size - 200_000 or size > 15_000_000
    check(demo, plan, weighted)


@pytest.mark.parametrize("size", [14_000_000_001])
def test_a_file_of_the_real_model_is_never_larger_than_asked(real, size):
    plan = make(real, size=size, weighted=False).plan

    assert size - 50_000_000 < api.planned_size(real, plan) <= size
    assert plan.predicted["kld"] > 0
    check(real, plan, weighted=False)


@pytest.mark.parametrize("size", [3_800_000, 4_567_890, 10_000_000])
def test_a_written_file_has_the_planned_size(size, demo, tmp_path):
    importance = importance_of(demo)
    plan = make(demo, size=size, types=QUICK).plan

    api.quantize_model(demo, tmp_path / "a.gguf", Target(plan=plan), importance)

    assert size >= (tmp_path / "a.gguf").stat().st_size == api.planned_size(demo, plan)
    with GGUFFile(tmp_path / "a.gguf") as file:
        types = {name: str(info.type) for name, info in file.tensors.items()}
        assert types == {name: entry.type for name, entry in plan.tensors.items()}
        assert plan.size == file.tensor_bytes


def test_a_tensor_without_importance_gets_no_type_that_needs_it(demo):
    """As of a text that reached no expert of a block, or a file of llama-imatrix's."""
    some = importance_of(demo, without="_exps")
    plan = api.make_plan(demo, Target(size=3_200_000), some)

    experts = {entry.type for name, entry in plan.tensors.items() if "_exps.weight" in name}
    assert not experts & NEEDS_IMPORTANCE


def test_enough_room_keeps_every_weight(demo):
    plan = make(demo, size=EVERYTHING).plan

    assert {entry.type for entry in plan.tensors.values()} == {"bf16", "f32"}
    assert plan.predicted["kld"] == 0


@given(bpw=st.floats(3.3, 17), weighted=st.booleans())
@settings(max_examples=8)
def test_bits_per_weight_are_never_more_than_asked(demo, bpw, weighted):
    plan = make(demo, weighted=weighted, bpw=bpw).plan

    assert bpw - 0.2 < plan.bpw <= bpw or bpw > 16
    check(demo, plan, weighted)


@pytest.mark.parametrize("columns", [32, 64, 192, 256, 704, 2112, 2816, 33])
@pytest.mark.parametrize("source", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_candidate_fits_and_the_last_loses_nothing(columns, source, weighted):
    """The source's own type is always there; what needs importance only with it."""
    ways = measured(columns, source, weighted, paddable=False)

    assert all(way.type.fits(columns) and way.padded_to is None for way in ways)
    assert source in {way.type.name for way in ways}
    assert error(ggml.type_named(source), source, weighted) == 0
    assert all(0 <= error(way.type, source, weighted) < 1 for way in ways)
    assert weighted or not NEEDS_IMPORTANCE & {way.type.name for way in ways}


# --- rules, floors, types ---


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


# --- memory ---


@given(
    vram=st.integers(0, 10_000_000),
    ram=st.integers(0, 10_000_000),
    prefer=st.sampled_from(["speed", "balance", "quality"]),
)
@settings(max_examples=6)
def test_memory_is_kept(demo, vram, ram, prefer):
    """And where it is too little, what is said to be enough is enough."""
    machine = small(demo, vram, ram)
    try:
        plan = make(demo, machine, prefer=prefer).plan
    except BudgetError as refused:
        for what in ("RAM", "VRAM on gpu0"):
            if (enough := would_do(refused, what)) is not None:
                check_enough(demo, machine, what, enough, prefer)
        return
    check_ledger(machine, plan)
    check(demo, plan)


def check_enough(model: Model, machine: Profile, what: str, enough: int, prefer: str) -> None:
    """So much of a memory does, and a good deal less does not."""
    for size in (enough, enough - (10 << 20)):
        host, (card,) = machine.host, machine.cards
        if what == "RAM":
            host = replace(host, memory=size)
        else:
            card = replace(card, memory=size)
        other = replace(machine, host=host, cards=(card,))
        if size == enough:
            check_ledger(other, make(model, other, prefer=prefer).plan)
        elif what == "RAM":
            with pytest.raises(BudgetError):
                make(model, other, prefer=prefer)


def would_do(refused: BudgetError, what: str) -> int | None:
    """The bytes that an error says would do."""
    said = str(refused)
    if what == "file":
        match = re.search(r"a file of (\d+) bytes would do", said)
        assert match, said
        return int(match[1])
    match = re.search(rf"([\d.]+ \wB) of {what} would do", said)
    return parse_size(match[1]) if match else None


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("machine", [None, pc()])
def test_the_size_that_a_refusal_names_can_be_had(demo, weighted, machine):
    """And a little less cannot."""
    with pytest.raises(BudgetError) as refused:
        make(demo, machine, weighted, size=1_000_000)
    enough = would_do(refused.value, "file")
    assert enough is not None

    plan = make(demo, machine, weighted, size=enough).plan
    assert api.planned_size(demo, plan) <= enough
    with pytest.raises(BudgetError):
        make(demo, machine, weighted, size=int(0.99 * enough))


def test_the_speed_and_the_loss_that_a_refusal_names_can_be_had(demo):
    machine = pc()
    with pytest.raises(BudgetError, match="per second would do") as slow:
        make(demo, machine, min_speed=1e6)
    with pytest.raises(BudgetError, match="loss of .* would do") as bad:
        make(demo, machine, max_kld=1e-9, floors={}, types=("q4_0", "q8_0"))
    (speed,) = map(float, re.findall(r"([\d.e+]+) tokens", str(slow.value)))
    (loss,) = map(float, re.findall(r"loss of ([\d.e-]+) would", str(bad.value)))

    assert (make(demo, machine, min_speed=speed).chosen.decode or 0) >= speed
    lossy = make(demo, machine, max_kld=loss, types=("q4_0", "q8_0"))
    assert lossy.chosen.kld <= loss


def test_bounds_hold_together(demo):
    """Bytes, seconds and loss."""
    machine = pc()
    found = make(demo, machine, size=5_000_000, min_speed=330.0, max_kld=0.02)

    assert api.planned_size(demo, found.plan) <= 5_000_000
    assert (found.chosen.decode or 0) >= 330 and found.chosen.kld <= 0.02


@pytest.mark.parametrize("spec", ["rtx-4070", "rtx-3060+rtx-3060"])
def test_without_ram_all_experts_are_on_cards(demo, spec):
    """On the host is only what rows are looked up in."""
    plan = make(demo, pc(ram=0, spec=spec), prefer="quality").plan

    devices = {name: entry.device for name, entry in plan.tensors.items()}
    assert {place for name, place in devices.items() if name.startswith("blk.")} <= {"gpu0", "gpu1"}


def test_without_ram_and_cards_there_is_no_place(demo):
    with pytest.raises(GemcutError, match="RAM"):
        make(demo, pc(ram=0, spec="ddr5-5600"))


@pytest.mark.parametrize(("vram", "ram"), [(8, 32)])
def test_the_real_model_fits_the_machine(real, vram, ram):
    machine = pc(vram * GB, ram * GB)
    plan = make(real, machine, prefer="speed", context=ContextOptions(n_ctx=32768, n_outputs=1))
    check_ledger(machine, plan.plan)
    check(real, plan.plan, floors=(4.25, 5.5))
    names = {name for name, entry in plan.plan.tensors.items() if entry.device == "cpu"}
    homes = [entry.device for name, entry in plan.plan.tensors.items() if "attn_norm" in name]
    assert homes == ["gpu0"] * 30
    assert all("_exps" in name or name == "token_embd.weight" for name in names)


# --- predictions ---


@pytest.mark.parametrize("size", [3_000_000, 4_000_000, 8_000_000])
def test_predicted_is_what_the_sensitivity_predicts(demo, size):
    """The solver's sum and the sensitivity's own are one, whatever is padded and split."""
    sensitivity = probed(demo, whole=1.5)
    found = make(demo, sensitivity=sensitivity, size=size)

    types = candidates_of(found.plan, demo)
    kld, se = sensitivity.predict({name: types[name] for name in types})
    assert found.chosen.kld == pytest.approx(kld, rel=1e-9)
    assert found.chosen.kld_se == pytest.approx(se, rel=1e-9)
    assert found.plan.predicted["kld_by"] == "probe"
    assert found.plan.sources["sensitivity"]


def test_a_sensitivity_of_another_model_is_refused(demo):
    with pytest.raises(SensitivityError, match="another model"):
        make(demo, sensitivity=replace(probed(demo), source="0" * 64), bpw=5)


@given(sizes=st.lists(st.integers(3_200_000, EVERYTHING), min_size=2, max_size=2, unique=True))
@settings(max_examples=5)
def test_a_larger_file_is_never_predicted_to_be_worse(demo, sizes):
    few, many = (make(demo, size=size).chosen for size in sorted(sizes))

    assert many.kld <= few.kld * (1 + 2 * GAP) + 0.01 * GAP


@given(st.lists(st.integers(5_000_000, 16_000_000), min_size=4, max_size=4))
@settings(max_examples=3)
def test_more_memory_is_never_predicted_to_be_worse(demo, sizes):
    """For those who prefer quality; where blocks go home on cards in both cases."""
    (vram, more_vram), (ram, more_ram) = sorted(sizes[:2]), sorted(sizes[2:])
    machines = [
        small(demo, card, host)
        for card, host in ((vram, ram), (more_vram, ram), (more_vram, more_ram))
    ]
    losses = [make(demo, machine, prefer="quality").chosen.kld for machine in machines]

    for less, more in zip(losses, losses[1:], strict=False):
        assert more <= less * (1 + 2 * GAP) + 0.01 * GAP


# --- padded and split ---


def test_a_padded_and_split_plan_is_written_and_loads(demo, bf16, tmp_path):
    """llama.cpp computes nearly what it does with the whole weights."""
    rules = [*("blk.*.ffn_down_exps.weight=q6_k", "blk.*.ffn_down.weight=q6_k"), "blk.*=q8_0,q6_k"]
    sensitivity = probed(demo, whole=1000.0)
    found = make(demo, sensitivity=sensitivity, rules=tuple(map(parse_rule, rules)))

    entries = found.plan.tensors
    assert {entry.padded_to for name, entry in entries.items() if "_exps.w" in name} == {256}
    assert {entry.padded_to for name, entry in entries.items() if "ffn_down.w" in name} == {256}
    assert {name for name, entry in entries.items() if entry.split} == {
        part for parts in splits(demo).values() for part in parts
    }
    made = tmp_path / "a.gguf"
    api.quantize_model(demo, made, Target(plan=found.plan), importance_of(demo))
    assert made.stat().st_size == api.planned_size(demo, found.plan)
    ours, theirs = logits(made), logits(bf16)
    assert np.abs(ours - theirs).max() < 0.15 * np.abs(theirs).max()
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.8


def logits(path):
    window = np.arange(100, 132, dtype=np.int32)
    options = ContextOptions(len(window), threads=1)
    with Loaded.load(path) as model, Context(model, options) as context:
        return context.decode(window, outputs="all").copy()


def test_plain_plans_pad_and_split_nothing(demo):
    found = make(demo, sensitivity=probed(demo, whole=1000.0), size=4_000_000, plain=True)

    assert not any(entry.padded_to or entry.split for entry in found.plan.tensors.values())


# --- what else there is ---


@pytest.mark.parametrize("machine", [None, pc()])
def test_the_frontier_goes_from_the_smallest_to_lossless(demo, machine):
    task = api.make_task(demo, Request(bpw=5), machine=machine, context=CONTEXT)
    outcome = plan_model(task)
    points, labels = outcome.frontier, {point.label for point in outcome.frontier}

    assert len(points) >= 6
    assert {"smallest", "balance", "lossless", "quality"} <= labels
    assert outcome.chosen in points
    assert [point.size for point in points] == sorted(point.size for point in points)
    assert points[0].label == "smallest" and points[-1].kld == 0
    assert all(point.fits for point in points)
    below = [point for point in points if point.below]
    assert below and points[0] in below


def test_what_does_not_fit_is_marked(demo):
    """Without loss it is too large for this machine."""
    machine = small(demo, 12_000_000, 3_000_000)
    task = api.make_task(demo, Request(), machine=machine, context=CONTEXT)
    outcome = plan_model(task)

    assert [point.label for point in outcome.frontier if not point.fits] == ["lossless"]
    assert outcome.gains


def test_more_memory_buys_no_larger_file_than_was_asked_for(demo):
    """The size is of the whole file, and all of the memory is there already."""
    task = api.make_task(demo, Request(size=5_000_000), machine=pc(), context=CONTEXT)
    outcome = plan_model(task)
    header = file_size(task.describe(outcome.plan), choose.infos(demo, outcome.plan))
    header -= outcome.plan.size

    memory = [gain.point for gain in outcome.gains if "RAM" in gain.what]
    assert memory and max(point.size for point in memory) + header <= 5_000_000


def test_the_same_task_has_the_same_plan_twice(demo):
    """To the byte, with the threads of the alternatives, too."""
    task = api.make_task(demo, Request(), machine=pc(), context=CONTEXT)
    first, second = plan_model(task), plan_model(task)

    assert first.plan.to_json() == second.plan.to_json()
    assert first.frontier == second.frontier and first.gains == second.gains


# --- any model ---


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_planned_for_a_size(name, tmp_path):
    model = api.open_source(families.build(tmp_path / name, name))
    bf16 = api.planned_size(model, api.make_plan(model, Target("bf16")))
    with pytest.raises(BudgetError) as refused:
        make(model, size=1)
    size = max(int(0.5 * bf16), would_do(refused.value, "file") or 0)

    plan = make(model, size=size).plan
    assert api.planned_size(model, plan) <= size
    assert {entry.device for entry in plan.tensors.values()} == {None}
    assert not plan.machine and not plan.ledger and not plan.context
    assert paddings(model) is not None and plan.predicted["kld"] >= 0


def test_a_model_whose_caches_are_unknown_has_a_plan_without_a_machine(demo):
    """Where not even the number of blocks is known, all tensors still count."""
    stranger = Value("str", "stranger")
    model = replace(
        demo, architecture="stranger", metadata={"general.architecture": stranger}, files=()
    )
    with pytest.raises(PlanError, match="a stranger model keeps of its context is not known"):
        make(model, pc())

    plan = make(model, size=4_000_000).plan
    assert plan.predicted["kld"] > 1e-3
    check(model, plan)


def test_a_tensor_of_an_unknown_name_is_planned(demo):
    """As something that counts as much as others do."""
    tensors = tuple(replace(t, name=t.name.replace("attn_q.", "mystery.")) for t in demo.tensors)
    plan = make(replace(demo, tensors=tensors, files=()), size=4_000_000).plan

    check(demo, plan)
    assert plan.tensors["blk.0.mystery.weight"].type != "f32"
