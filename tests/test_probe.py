"""What errors cost the model: measured on the model itself, against files that really have them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut import api, ggml
from gemcut.demo.text import held_out_text
from gemcut.errors import EngineError, PlanError, SensitivityError, TextError, UsageError
from gemcut.eval.compare import compare
from gemcut.eval.scope import Means
from gemcut.eval.texts.text import Text
from gemcut.plan import Entry
from gemcut.quantize import probe as probe_module
from gemcut.quantize.group_weights import Work, change, positive, probeable, weigh, weight_of
from gemcut.quantize.groups import group_tensors, groupings
from gemcut.quantize.probe import Probing, Sample, open_probe
from gemcut.quantize.reference import Reference, size
from gemcut.quantize.reweigh import probe_sensitivity, regrouped
from gemcut.quantize.swapping import Change
from gemcut.runtime.machine.inspection import inspect_machine
from gemcut.score import score
from gemcut.sensitivity import GroupWeight, Sensitivity
from gemcut.tensor_sensitivity import LocalError, TensorSensitivity

SAMPLE = Sample(128, 4)
TEXT = held_out_text()[:40_000]
EMBEDDING = "token_embd.weight"
LATE = "blk.5.ffn_down_exps.weight"
EARLY = "blk.0.attn_output.weight"
Q4_0 = ggml.type_named("q4_0")


@pytest.fixture(scope="module")
def source(checkpoint):
    return api.open_source(checkpoint)


@pytest.fixture(scope="module")
def probe(q8_0, source):
    with open_probe(Probing(q8_0, TEXT, SAMPLE), source, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def sensitivity(source):
    """Errors as they usually are, and priors; the expert tensors have parts."""
    tensors, error = {}, {"q4_0": LocalError(0.0075), "q8_0": LocalError(3e-5)}
    names = [t.name for t in source.tensors if t.quantizable and not t.kept]
    for group, members in group_tensors(names, 1).items():
        for name in members:
            tensors[name] = TensorSensitivity(group, error)
            if "gate_up" in name:
                tensors |= {f"{name}#{part}": tensors[name] for part in ("gate", "up")}
    weights = {tensor.group: GroupWeight(0.1, 0.1, "prior") for tensor in tensors.values()}
    return Sensitivity("gemma4", "x", None, None, {}, weights, tensors)


# --- the reference ---


def test_a_whole_reference_is_exact():
    """With every token kept, the divergence is the scorer's."""
    first, other = np.random.default_rng(0).normal(0, 3, (2, 40, 300)).astype(np.float32)
    exact = score(np.zeros(40, np.int32), [other], first)[1].divergence
    assert exact

    np.testing.assert_allclose(exact.kld, Reference(first).divergence(other), rtol=2e-6, atol=1e-6)
    assert 0 == pytest.approx(Reference(first).divergence(first), abs=1e-6)


def test_a_compact_reference_loses_little():
    """It is never above the true divergence, and within the rest's share of it."""
    random = np.random.default_rng(1)
    first = random.normal(0, 3, (40, 5000)).astype(np.float32)
    other = first + random.normal(0, 0.2, first.shape).astype(np.float32)
    exact = Reference(first, 5000).divergence(other)
    compact = Reference(first, 2000)

    assert (compact.divergence(other) <= exact + 1e-6).all()
    assert compact.divergence(other).mean() == pytest.approx(exact.mean(), rel=0.1)
    assert compact.nbytes == size(40, 5000, 2000) < Reference(first, 5000).nbytes


def test_broken_logits_have_no_divergence():
    """They are not taken for a perfect match."""
    logits = np.zeros((2, 10), np.float32)
    reference = Reference(logits)
    logits[1, 3] = np.nan

    assert [True, False] == np.isfinite(reference.divergence(logits)).tolist()


# --- the text ---


def test_chunks_are_spread_over_the_text():
    """From its beginning to its end, with the token that begins a text in place of the first."""
    chunks = Sample(10, 3).cut(np.arange(105, dtype=np.int32), bos=7)

    assert [9, 49, 99] == chunks[:, -1].tolist() or [9, 39, 99] == chunks[:, -1].tolist()
    assert (chunks[:, 0] == 7).all()
    assert 10 == len(Sample(10, 30).cut(np.arange(105, dtype=np.int32), None))


def test_too_little_text_is_refused(q8_0):
    """One chunk has no error bar."""
    with pytest.raises(TextError, match="too short: .* wanted 2 chunks of 128"):
        open_probe(Probing(q8_0, "short", SAMPLE))
    with pytest.raises(UsageError, match="1 chunks of 512 tokens"):
        Sample(512, 1)


# --- changes ---


def test_no_change_costs_nothing(probe):
    """Neither no tensor, nor one with the values that it has."""
    with_own = {LATE: Change(ggml.type_named("q8_0"))}

    assert 0 == pytest.approx(probe.divergence({}), abs=1e-7)
    assert np.array_equal(probe.divergence({}), probe.divergence(with_own))


def test_a_change_costs_the_same_each_time(probe):
    """Nothing is left of what was tried before."""
    changes = {EMBEDDING: Change(Q4_0)}
    first = probe.divergence(changes)
    probe.divergence({LATE: Change(Q4_0, 3.0)})

    assert np.array_equal(first, probe.divergence(changes))
    assert (first > 0).all()


@pytest.mark.parametrize("names", [[EMBEDDING], [EARLY, "blk.3.attn_v.weight"]])
def test_a_change_costs_what_a_file_with_it_loses(q8_0, source, tmp_path, names):
    """The same tensors in the same type, really written and scored, but for rounding."""
    written, text = tmp_path / "changed.gguf", Text.of("text", TEXT[:6000])
    plan = api.make_plan(source, api.Target("q8_0"))
    tensors = {**plan.tensors, **dict.fromkeys(names, Entry("q3_k"))}
    api.quantize_model(source, written, api.Target(plan=replace(plan, tensors=tensors)))
    everything = Sample(128, 1000)
    with open_probe(Probing(q8_0, text.content, everything), source, threads=1) as probe:
        tried = probe.divergence(dict.fromkeys(names, Change(ggml.type_named("q3_k"))))
    found = compare([written], q8_0, [text], 128, means=Means(1)).rows[1].scores.divergence
    assert found
    real = found.kld.reshape(len(tried), -1).mean(axis=1)

    assert tried.mean() == pytest.approx(real.mean(), rel=0.15)
    assert np.corrcoef(tried, real)[0, 1] > 0.9


# --- weights ---


def test_early_errors_cost_more_than_late_ones(probe, sensitivity):
    """The embedding is read twice and built upon by all; a last block's experts are not."""
    groups = {"embedding": (EMBEDDING,), "late": (LATE,)}
    weights = weigh(probe, sensitivity.tensors, Work(groups))

    assert weights["embedding"].weight > 5 * weights["late"].weight > 0
    assert {"probe"} == {weight.source for weight in weights.values()}
    for weight in weights.values():
        ((error, kld, se),) = weight.points
        assert 0.03 == error
        assert weight.weight == pytest.approx(kld / error, rel=0.2)
        assert 0 < se / error == pytest.approx(weight.se)


def test_the_floor_is_taken_off(probe, sensitivity):
    """An error too small to matter costs a good deal, and weighs nearly nothing."""
    tensor, names = "blk.0.attn_q.weight", ("blk.0.attn_q.weight",)
    raw = probe.divergence({tensor: change(sensitivity.tensors[tensor], 2e-4)}).mean()
    work = Work({"group": names}, levels=(2e-4,))
    ((_, kld, _),) = weigh(probe, sensitivity.tensors, work)["group"].points

    assert raw > 1e-5
    assert abs(kld) < raw / 2


def test_known_groups_are_not_measured_again(probe, sensitivity):
    """What is left of interrupted work gives what the whole work would have given."""
    groups = {"early": (EARLY,), "late": (LATE,)}
    told: dict[str, GroupWeight] = {}
    whole = weigh(probe, sensitivity.tensors, Work(groups), told.__setitem__)
    passes = []
    work = Work(groups, {"early": whole["early"]})
    rest = weigh(
        probe, sensitivity.tensors, work, told.__setitem__, lambda *now: passes.append(now)
    )

    assert whole == rest == told
    assert [(1, 2), (2, 2)] == passes  # a floor and a group


def test_tensors_on_a_lattice_are_given_another_types_error():
    """Where Q4_0 loses nothing, its error cannot be enlarged."""
    errors = {"q4_0": LocalError(0.0), "mxfp4": LocalError(0.012)}
    tensor = TensorSensitivity("group", errors)

    assert "mxfp4" == change(tensor, 0.048).type.name
    assert 2 == pytest.approx(change(tensor, 0.048).strength)
    assert not probeable("name", {"name": TensorSensitivity("group", {"q4_0": LocalError(0.0)})})
    assert not probeable("name", {})


def test_an_error_fitted_to_importance_comes_first():
    """MXFP4's is not, and would be of another shape than those that are to be predicted."""
    errors = {"q4_0": LocalError(1e-3), "q3_k": LocalError(5e-3), "mxfp4": LocalError(0.012)}

    assert "q3_k" == change(TensorSensitivity("group", errors), 0.03).type.name


@given(st.floats(-10, 10), st.floats(0.01, 3))
def test_weights_are_positive(mean, se):
    """Never zero, whatever was measured; what is certain stays; more measured is more believed."""
    weight = positive(mean, se)

    assert weight > 0
    assert weight >= mean or weight == pytest.approx(mean)
    assert positive(mean + 0.1, se) >= weight
    if mean > 6 * se:
        assert weight == pytest.approx(mean)


def test_precise_points_count_for_more():
    """The slope lies between the points' and near the surer one's."""
    weight = weight_of([(0.01, 0.001, 0.0005), (0.03, 0.006, 0.0001)])

    assert weight.weight == pytest.approx(0.2, abs=0.002)
    assert weight.se < 0.0001 / 0.03
    assert 2 == len(weight.points)


# --- groups, and the sensitivity as a whole ---


def test_groupings_become_coarser(sensitivity):
    """From single tensors to roles; each holds every tensor once."""
    names = sorted(name for name in sensitivity.tensors if "#" not in name)
    found = list(groupings(names))

    assert all(sorted(sum(groups.values(), ())) == names for groups in found)
    assert len(names) == len(found[0]) > len(found[1]) > len(found[-1])
    assert ("blk.0.ffn_down_exps.weight",) == found[1]["experts_down/0-0"]
    assert {"experts_down/0-5", "embedding"} <= found[-1].keys()


def test_time_decides_how_fine_groups_are(probe, sensitivity):
    """The finest that fit are taken, and told before; what fits in no time at all is refused."""
    told: list[str] = []
    pass_ = probe.seconds / 60

    with pytest.raises(UsageError, match="minutes at least, wanted 0: allow more"):
        probe_sensitivity(sensitivity, probe, minutes=0.0)
    found = probe_sensitivity(sensitivity, probe, minutes=30 * pass_, tell=told.append)
    measured = {name: g for name, g in found.groups.items() if g.source == "probe"}

    assert 3 < len(measured) < 30
    assert f"probing {len(measured)} of {len(measured)} groups over 4 chunks of 128" in told[0]
    assert {tensor.group for tensor in found.tensors.values()} == found.groups.keys()
    gate_up = "blk.0.ffn_gate_up_exps.weight"
    assert found.tensors[gate_up].group == found.tensors[f"{gate_up}#gate"].group
    assert 4 == found.settings["probe_chunks"]
    assert found.text
    types = {name: "q4_0" for name in found.tensors if "#" not in name}
    assert found.predict(types)[0] > 0
    assert found == Sensitivity.from_json(found.to_json(), "here")


def test_what_was_not_probed_keeps_its_prior_in_the_same_units(sensitivity):
    """Priors are relative to each other; the measured weights say what their unit is."""
    groups = {"embedding": (EMBEDDING,), "attention/0-0": ("blk.0.attn_q.weight",)}
    measured = {name: GroupWeight(0.4, 0.1, "probe") for name in groups}
    found = regrouped(sensitivity, groups, measured)
    left = found.tensors["blk.0.attn_k.weight"].group

    assert "attention/0-0, not probed" == left
    assert "prior" == found.groups[left].source
    assert 0.4 == pytest.approx(found.groups[left].weight)
    assert measured["embedding"] == found.groups["embedding"]


def test_groups_of_other_work_are_refused(probe, sensitivity):
    """They are not silently measured again under other names."""
    known = {"experts/0-99": GroupWeight(1, 1, "probe")}

    with pytest.raises(SensitivityError, match="experts/0-99: known of another model"):
        probe_sensitivity(sensitivity, probe, known=known)
    with pytest.raises(SensitivityError, match="no error of q4_0 is known"):
        probe_sensitivity(replace(sensitivity, tensors={}), probe)


# --- what cannot be probed ---


def test_another_models_file_is_refused(q8_0, source):
    """Before anything is loaded."""
    with pytest.raises(EngineError, match="the loaded file is gemma4, the source llama"):
        open_probe(Probing(q8_0, TEXT, SAMPLE), replace(source, architecture="llama"))


def test_too_little_memory_is_refused(q8_0, monkeypatch):
    """Before anything is loaded, with what it takes and what there is."""
    small = replace(inspect_machine(), ram_available=10_000_000, devices=())
    monkeypatch.setattr(probe_module, "inspect_machine", lambda: small)

    with pytest.raises(EngineError, match="probing takes 0.3 GB of memory, 0.0 GB are free"):
        open_probe(Probing(q8_0, TEXT, SAMPLE), threads=2)


def test_a_type_without_importance_is_refused(probe):
    """The model is as it was before."""
    with pytest.raises(PlanError, match=f"{EMBEDDING}: iq2_xxs needs an importance matrix"):
        probe.divergence({EMBEDDING: Change(ggml.type_named("iq2_xxs"))})
    assert 0 == pytest.approx(probe.divergence({}), abs=1e-7)
