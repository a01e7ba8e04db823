"""Plans predict what was measured, pad and split what may be, and show what else there is."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut import api, ggml
from gemcut.api import Target
from gemcut.engine import ContextOptions
from gemcut.errors import BudgetError, PlanError, SensitivityError
from gemcut.gguf_file import Value
from gemcut.gguf_layout import file_size
from gemcut.llama import Context
from gemcut.llama import Model as Loaded
from gemcut.quantize import choose
from gemcut.quantize.candidates import error, measured
from gemcut.quantize.planner import plan_model
from gemcut.quantize.request import Request, parse_rule
from gemcut.quantize.widths import paddings, splits
from tests import families
from tests.plans import (
    CONTEXT,
    EVERYTHING,
    GAP,
    NEEDS_IMPORTANCE,
    candidates_of,
    check,
    importance_of,
    make,
    pc,
    probed,
    small,
    would_do,
)

FAMILIES = ["deepseek_v3", "glm4_moe", "gpt_oss", "llama4", "mixtral", "qwen3_next"]


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
