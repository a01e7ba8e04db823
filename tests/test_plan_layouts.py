"""A plan without cards counts on the layout of weights that a run of its file would take."""

import re
from dataclasses import replace

import pytest

from gemcut import api
from gemcut.api import Target
from gemcut.convert.model import Model
from gemcut.errors import BudgetError
from gemcut.gguf_file import GGUFFile
from gemcut.profile import Kernels, Processor, Profile
from gemcut.quantize.explain import explain
from gemcut.quantize.planner import plan_model
from gemcut.quantize.request import Request
from gemcut.runtime.placement.given import Given
from gemcut.runtime.placement.placement import plan_run
from gemcut.runtime.placement.workload import CHAT
from tests.plans import CONTEXT, importance_of, make

RATE, FLOPS = 1e9, 1e10  # at which a request for the demo's model spends its time on weights
RAM = 4 << 30
CARD = Processor("gpu0", "card", 4 << 30, 0, 4 * RATE, flops=100 * FLOPS, link=2 * RATE)
TYPES = ("q4_0", "q6_k", "q8_0")


def cpu(decode: float, batches: float, kinds: tuple[str, ...] = TYPES) -> Profile:
    """A machine whose own layouts are so many times as fast as weights as they are in a file."""
    plain = Kernels(*(dict.fromkeys(TYPES, rate) for rate in (RATE, FLOPS, FLOPS)))
    speeds = (decode * RATE, batches * FLOPS, batches * FLOPS)
    own = Kernels(*(dict.fromkeys(kinds, speed) for speed in speeds))
    rates = (plain.by_type, FLOPS, 0.0, "measured", plain.batches, plain.experts, own)
    return Profile("alone", Processor("cpu", "host", RAM, 0, RATE, *rates), (), 1e-6, 0.0, 0.1)


def as_in_the_file(machine: Profile) -> Profile:
    """The same, of which nobody knows how fast rearranged weights are."""
    return replace(machine, host=replace(machine.host, rearranged=Kernels()))


@pytest.mark.parametrize(
    ("decode", "batches", "repack"),
    [(2.0, 2.0, True), (2.0, 1.0, True), (1.04, 1.0, False), (1.3, 0.1, False), (0.5, 2.0, False)],
)
def test_a_plan_predicts_what_a_run_will(demo, decode, batches, repack, tmp_path):
    """The speed of the layout that a run of the finished file takes, whichever that is."""
    machine = cpu(decode, batches)
    found = make(demo, machine, size=6_000_000, types=TYPES)
    api.quantize_model(demo, tmp_path / "a.gguf", Target(plan=found.plan), importance_of(demo))

    with GGUFFile(tmp_path / "a.gguf") as file:
        run = plan_run(file, machine, Given(n_ctx=CONTEXT.n_ctx, n_ubatch=CONTEXT.n_ubatch), CHAT)

    assert run.model.repack == found.loading.repack == repack
    assert found.chosen.decode == pytest.approx(run.decode.per_second, rel=1e-3)
    assert found.plan.machine == machine.to_dict()


def test_types_follow_the_layout(demo):
    """Time is worth the same; those that are read sooner so are chosen for more tensors."""
    plans = [
        make(demo, machine, types=TYPES, prefer="speed").plan
        for machine in (cpu(3.0, 3.0, ("q6_k",)), as_in_the_file(cpu(1.0, 1.0)))
    ]
    counts = [sum(e.type == "q6_k" for e in plan.tensors.values()) for plan in plans]

    assert counts[0] > counts[1]


def test_a_speed_that_a_rearranged_run_has_is_not_refused(demo):
    """And the one that a refusal names can be had."""
    machine = cpu(2.0, 2.0)
    rearranging = replace(machine, host=machine.host.rearranging)
    slow, fast = (refused_for(demo, as_in_the_file(m), 1e6) for m in (machine, rearranging))
    named = refused_for(demo, machine, 1e6)

    assert fast > 1.1 * slow
    for speed in (0.99 * fast, named):
        found = make(demo, machine, types=TYPES, min_speed=speed)
        assert (found.chosen.decode or 0) >= speed


def test_a_speed_that_no_run_would_have_is_refused(demo):
    """Answers would be written sooner in the CPU's own layout, and requests take longer."""
    machine = cpu(1.5, 0.05)
    plain = refused_for(demo, as_in_the_file(machine), 1e6)

    assert refused_for(demo, machine, 1.2 * plain) == plain
    found = make(demo, machine, types=TYPES, min_speed=plain)
    assert not found.loading.repack and (found.chosen.decode or 0) >= plain


def refused_for(model: Model, machine: Profile, speed: float) -> float:
    """The speed that would do instead."""
    with pytest.raises(BudgetError) as refused:
        make(model, machine, types=TYPES, min_speed=speed)
    (named,) = re.findall(r"([\d.e+]+) tokens per second would do", str(refused.value))
    return float(named)


def test_beside_a_card_that_computes_prompts_weights_stay_as_they_are(demo):
    """The same plan as where nobody measured another layout, but for the machine that it names."""
    machine = replace(cpu(2.0, 2.0), cards=(CARD,))
    plans = [
        make(demo, each, types=TYPES, prefer="balance").plan
        for each in (machine, as_in_the_file(machine))
    ]

    assert plans[0].tensors == plans[1].tensors
    assert plans[0].predicted == plans[1].predicted


def test_alternatives_and_explanations_are_of_the_same_layout(demo):
    """A token takes as long as the plan says: its tensors' seconds add up to less than that."""
    machine = cpu(2.0, 2.0)
    task = api.make_task(demo, Request(size=6_000_000, types=TYPES), None, None, machine, CONTEXT)
    found = plan_model(task)
    name = "blk.0.attn_q.weight"

    assert found.loading and found.loading.repack
    assert found.chosen in found.frontier
    seconds = [
        next(each.seconds[0] for each in explain(one, found.plan, name)[0].alternatives)
        for one in (replace(task, loading=found.loading), task)
    ]
    assert seconds[0] == pytest.approx(seconds[1] / 2)
