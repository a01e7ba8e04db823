"""Types per expert in plans: they are taken where they bring much."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from gemcut import api, ggml
from gemcut.cli.outcome import explanation
from gemcut.convert.model import Model
from gemcut.errors import PlanError, SensitivityError, UsageError
from gemcut.gguf_experts import is_stack
from gemcut.plan import Plan
from gemcut.quantize.explain import explain
from gemcut.quantize.identity import fingerprint
from gemcut.quantize.outcome import Outcome, Task
from gemcut.quantize.planner import plan_model
from gemcut.quantize.priors import prior_sensitivity
from gemcut.quantize.request import Request, Rule
from gemcut.quantize.statistics import Entry, Statistics, write_statistics
from gemcut.runtime.machine.cards import named
from gemcut.runtime.machine.profiles import with_limits
from gemcut.sensitivity import Sensitivity
from gemcut.tensor_sensitivity import LocalError
from tests.shell import run

DOWN = "blk.1.ffn_down_exps.weight"
QUICK = ("q2_k", "q3_k", "q4_0", "q5_0", "q6_k", "q8_0")


@pytest.fixture(scope="module")
def model(checkpoint) -> Model:
    return api.open_source(checkpoint)


def statistics(model: Model, skew: float) -> Statistics:
    """Every expert gets the more rows, the less its number is."""
    entries = {}
    for tensor in model.tensors:
        if tensor.name.startswith("blk.") and not tensor.kept and tensor.quantizable:
            counts = np.rint(2000 * np.exp(-skew * np.arange(tensor.matrices))).astype(np.float32)
            sums = np.repeat(counts[:, None], tensor.columns, axis=1)
            entries[tensor.name] = Entry(sums, counts)
    return Statistics(entries, ("text",), 4, 512)


@pytest.fixture(scope="module")
def skewed(model) -> Statistics:
    return statistics(model, 0.5)


@pytest.fixture(scope="module")
def known(model, skewed) -> Sensitivity:
    """As if it had been measured."""
    weighted = frozenset(skewed.entries)
    found = prior_sensitivity(model, weighted, skewed)
    return replace(found, source=fingerprint(model))


def task(model, statistics, sensitivity=None, machine=None, **asked) -> Task:
    made = api.make_task(model, Request(per_expert=True, **asked), sensitivity, statistics, machine)
    return replace(made, imatrix=sensitivity and sensitivity.imatrix)


def make(*of, **asked) -> Outcome:
    return plan_model(task(*of, **asked), alternatives=False)


def mixtures(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {name: e.experts for name, e in plan.tensors.items() if e.experts}


def nbytes(model: Model, plan: Plan) -> int:
    """Bytes of the tensors, counted anew."""
    total = 0
    for tensor in model.tensors:
        entry = plan.tensors[tensor.name]
        rows, columns = tensor.rows // tensor.matrices, entry.padded_to or tensor.columns
        if ".ffn_down" not in tensor.name and entry.padded_to:
            parts = 1 + (".ffn_gate_up" in tensor.name)
            rows, columns = parts * entry.padded_to, tensor.columns
        types = entry.experts or [entry.type] * tensor.matrices
        total += sum(rows * ggml.type_named(kind).row_bytes(columns) for kind in types)
    return total


@pytest.mark.parametrize("bpw", [3.5, 4.5, 5.5])
def test_a_plan_with_types_per_expert(model, skewed, known, bpw):
    outcome = make(model, skewed, known, bpw=bpw, prefer="quality")

    plan, found = outcome.plan, mixtures(outcome.plan)
    assert outcome.worth and outcome.worth.enough and "runs with gemcut alone" in str(outcome.worth)
    assert found and all(is_stack(name) for name in found)
    assert not any(entry.split for entry in plan.tensors.values() if entry.experts)
    assert 8 * plan.size <= bpw * model.weights
    if not any(entry.split for entry in plan.tensors.values()):
        assert plan.size == nbytes(model, plan)
        types = {name: words(known, plan, name) for name in known.tensors}
        assert plan.predicted["kld"] == pytest.approx(known.predict(types)[0], rel=1e-4)
    assert plan.predicted["kld"] < 0.9 * plan.predicted["kld_without_experts"]
    for name, each in found.items():
        assert len(each) == 16 and plan.tensors[name].type in each
        bits = [ggml.type_named(kind).bpw for kind in each]
        assert bits == sorted(bits, reverse=True) and min(bits) >= 2
    assert Plan.from_json(plan.to_json(), "it") == plan
    without = plan_model(
        replace(task(model, skewed, known), request=Request(bpw=bpw, prefer="quality")), False
    )
    assert without.chosen.kld == pytest.approx(outcome.worth.without, rel=0.03)
    assert without.worth is None and not mixtures(without.plan)


def words(known: Sensitivity, plan: Plan, name: str):
    """What the plan writes of a tensor, in the sensitivity's words."""
    entry, errors = plan.tensors[name], known.tensors[name].errors

    def word(kind: str) -> str:
        return kind if kind in errors else next(e for e in errors if e.startswith(f"{kind}@"))

    return [word(kind) for kind in entry.experts] if entry.experts else word(entry.type)


def test_even_routing_is_not_worth_it(model):
    even = statistics(model, 0.0)

    outcome = make(model, even, bpw=4.5, types=QUICK)

    assert outcome.worth and not outcome.worth.enough and not mixtures(outcome.plan)
    assert "not worth it here: predicted KL divergence x " in str(outcome.worth)
    assert not outcome.plan.request.get("per_expert")
    assert "kld_without_experts" not in outcome.plan.predicted


def test_where_nothing_else_fits(model, skewed, known):
    """Of a size that is enough for the loss that is allowed only with types per expert."""
    asked = {"bpw": 4.5, "types": QUICK}
    first = make(model, skewed, known, **asked)
    assert first.worth and first.worth.without
    between = (first.worth.kld + first.worth.without) / 2

    found = make(model, skewed, known, **asked, max_kld=between)

    assert found.chosen.kld <= between and mixtures(found.plan)
    assert str(found.worth).startswith("nothing fits without; such a file runs with gemcut alone")
    assert "kld_without_experts" not in found.plan.predicted


def test_what_is_asked_for_holds_for_every_expert(model, skewed, known):
    rules = (Rule("blk.0.*", ("q4_0", "q8_0")), Rule("blk.2.ffn_down_exps*", ("q5_0",)))
    floors = {"experts_down": "q4_0"}

    plan = make(model, skewed, known, bpw=5.0, rules=rules, floors=floors).plan

    found = mixtures(plan)
    assert any(name.startswith("blk.0.") for name in found)
    assert "blk.2.ffn_down_exps.weight" not in found
    for name, types in found.items():
        if name.startswith("blk.0."):
            assert set(types) <= {"q4_0", "q8_0"}
        if "ffn_down" in name:
            assert min(ggml.type_named(kind).bpw for kind in types) >= 4.5
    types = ("q4_0", "q5_0", "q8_0", "bf16")
    plan = make(model, skewed, known, bpw=6.5, types=types).plan
    assert mixtures(plan) and {k for ts in mixtures(plan).values() for k in ts} <= set(types)


def test_a_part_with_a_rule_of_its_own_is_mixed_alone(model, skewed, known):
    whole = "blk.1.ffn_gate_up_exps.weight"
    tensor = known.tensors[whole]
    halves = {
        f"{whole}#{part}": replace(
            tensor, errors={k: LocalError(e.mean / 2) for k, e in tensor.errors.items()}
        )
        for part in ("gate", "up")
    }
    measured = replace(known, tensors={**known.tensors, **halves})
    rules = (Rule("blk.1.ffn_gate_exps.weight", ("q8_0",)),)

    plan = make(model, skewed, measured, bpw=5.0, rules=rules).plan

    gate, up = (plan.tensors[f"blk.1.ffn_{part}_exps.weight"] for part in ("gate", "up"))
    assert (gate.type, gate.experts, gate.split, up.split) == ("q8_0", None, True, True)
    assert up.experts and len(up.experts) == 16


def test_types_per_expert_are_on_the_host(model, skewed, known):
    machine = with_limits(named("rtx-4070+ddr5-5600"), None, None)

    asked = {"prefer": "quality", "bpw": 4.5, "types": QUICK}

    outcome = make(model, skewed, known, machine, **asked)

    found = mixtures(outcome.plan)
    assert found and all(outcome.plan.tensors[name].device == "cpu" for name in found)
    assert outcome.chosen.decode and outcome.chosen.prefill
    said = str(outcome.worth)
    slower = re.search(r"read (\d\S*) times slower and answers written (1\.\d) times", said)
    wanted = task(model, skewed, known, machine, **asked)
    whole = replace(wanted, request=replace(wanted.request, per_expert=False))
    stock = plan_model(whole, alternatives=False)
    assert stock.chosen.decode and stock.chosen.prefill
    ratios = (
        stock.chosen.prefill / outcome.chosen.prefill,
        stock.chosen.decode / outcome.chosen.decode,
    )
    assert slower and [float(each) for each in slower.groups()] == pytest.approx(ratios, rel=0.1)
    assert f"takes {outcome.chosen.request:.3g} s instead of {stock.chosen.request:.3g} s" in said
    asked["rules"] = (Rule("*_exps.weight", (), "gpu"),)
    on_card = make(model, skewed, known, machine, **asked)
    assert not mixtures(on_card.plan) and not on_card.worth.enough


def test_a_card_that_reads_prompts_is_not_given_up(model, skewed, known):
    """Unless quality was asked for by name, time has a price; for a given size a moderate one."""
    found = with_limits(named("rtx-4070+ddr5-5600"), None, None)
    machine = replace(found, host=replace(found.host, flops=found.host.flops / 10))

    def made(prefer):
        return make(model, skewed, known, machine, prefer=prefer, bpw=4.5, types=QUICK)

    quality, given, balance = map(made, ("quality", None, "balance"))

    assert not quality.worth.timed and given.worth.timed and balance.worth.timed
    assert quality.chosen.request > given.chosen.request > balance.chosen.request
    assert quality.chosen.kld < given.chosen.kld
    assert given.worth.equal < given.worth.without
    assert not mixtures(balance.plan) and not balance.worth.enough
    assert "with the time it takes counted (--prefer quality counts none)" in str(balance.worth)


def test_without_a_card_only_decoding_takes_longer(model, skewed, known):
    machine = with_limits(named("ddr5-5600"), None, None)

    outcome = make(model, skewed, known, machine, bpw=4.5, types=QUICK)

    assert mixtures(outcome.plan) and outcome.worth.enough and outcome.worth.timed
    assert outcome.worth.prefill_ratio == pytest.approx(1, abs=0.05)
    assert "prompts" not in str(outcome.worth)
    assert f"; {outcome.worth.kld:.3g} instead of {outcome.worth.without:.3g}" in str(outcome.worth)


def test_without_ram_experts_stay_whole(model, skewed, known):
    machine = with_limits(named("rtx-4070+ddr5-5600"), None, 0)

    outcome = make(model, skewed, known, machine, prefer="quality", bpw=4.5, types=QUICK)

    assert not mixtures(outcome.plan) and outcome.worth is None
    assert outcome.notes[-1].startswith("types per expert: such experts live in RAM")


def test_what_cannot_be_planned(model, skewed, known):
    with pytest.raises(UsageError, match="per-expert goes without plain"):
        Request(per_expert=True, plain=True)
    with pytest.raises(PlanError, match="follow how a text is routed: give --imatrix"):
        make(model, None, bpw=4.5)
    earlier = {n: replace(t, experts=(), routed=()) for n, t in known.tensors.items()}
    with pytest.raises(SensitivityError, match="nothing of single experts.*measure --imatrix"):
        make(model, skewed, replace(known, tensors=earlier), bpw=4.5)
    down = replace(known.tensors[DOWN], experts=(1.0,), routed=(1.0,))
    with pytest.raises(SensitivityError, match=f"{DOWN}: 1 experts of 16"):
        make(model, skewed, replace(known, tensors={**known.tensors, DOWN: down}), bpw=4.5)
    dense = replace(model, tensors=tuple(t for t in model.tensors if "_exps" not in t.name))
    with pytest.raises(PlanError, match="no tensor of this model holds routed experts"):
        make(dense, skewed, bpw=4.5)


def test_an_explanation_has_the_mixtures(model, skewed, known):
    made = task(model, skewed, known, bpw=4.5, types=QUICK)
    plan = plan_model(made, alternatives=False).plan
    name = next(iter(mixtures(plan)))

    (found, *_) = explain(made, plan, name)

    taken = [each for each in found.alternatives if each.taken]
    assert len(taken) == 1 and taken[0].experts == Counter(plan.tensors[name].experts)
    assert sum(bool(each.experts) for each in found.alternatives) > 10
    shown = list(explanation(found).columns[1].cells)
    assert any(re.fullmatch(r"\d+ x q\w+(, \d+ x q\w+)+", str(cell)) for cell in shown)


@pytest.mark.parametrize(("bpw", "skew"), [(3.3, 0.1), (4.1, 1.0), (7.0, 0.2)])
def test_other_sizes_and_skews(model, bpw, skew):
    found = make(model, statistics(model, skew), bpw=bpw, types=QUICK)

    assert 8 * found.plan.size <= bpw * model.weights
    assert bool(mixtures(found.plan)) == found.worth.enough
    assert found.worth.ratio <= 1.02


# --- the command line ---


def test_on_the_command_line(checkpoint, skewed, tmp_path):
    imatrix, plan = tmp_path / "imatrix.gguf", tmp_path / "plan.json"
    write_statistics(imatrix, skewed)
    words = ["plan", checkpoint, "--per-expert", "--bpw", 4.5, "--imatrix", imatrix]
    words += ["--machine", "ddr4-3200", "--types", ",".join(QUICK)]

    shown = run(*words, "-o", plan, COLUMNS="160")
    said = run(*words, "--json")

    assert shown.exit_code == 0, shown.output
    assert "types per expert  predicted KL divergence x 0." in shown.output
    document = json.loads(said.stdout)
    assert document["types_per_expert"]["worth_it"] is True
    assert 0 < document["types_per_expert"]["ratio"] < 0.95
    assert "smallest" in {point["label"] for point in document["frontier"]}
    assert mixtures(Plan.read(plan)) and Plan.read(plan).request["per_expert"] is True
