"""A file is never larger than asked for, and what it may not save on stays whole."""

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
from gemcut.errors import BudgetError, UsageError
from gemcut.gguf_file import GGUFFile
from gemcut.plan import Plan
from gemcut.quantize import budget
from gemcut.quantize.candidates import error, ladder
from gemcut.quantize.choose import plan_bpw, plan_weights
from gemcut.quantize.roles import role_of
from tests import checkpoints

KEPT = re.compile(
    r".*(_norm(_\d)?|post_ffw_norm_\d|ffn_gate_inp|layer_output_scale)\.weight|.*\.scale"
)
NEEDS_IMPORTANCE = {"iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq1_s", "iq1_m"}
EVERYTHING = 20_000_000  # bytes that hold the demo's model whole


@pytest.fixture(scope="module")
def demo(checkpoint) -> Model:
    return api.open_source(checkpoint)


@pytest.fixture(scope="module")
def real(checkpoint, tmp_path_factory):
    """The 26B-A4B, its 262144 tokens left out: they would only take time."""
    folder = tmp_path_factory.mktemp("real") / "model"
    model = api.open_source(checkpoints.build(folder, checkpoint, checkpoints.REAL, hollow=True))
    yield replace(model, metadata={k: v for k, v in model.metadata.items() if "tokenizer" not in k})
    shutil.rmtree(folder)


def plan_of(model: Model, size: int, weighted: bool = False) -> Plan:
    return api.make_plan(model, Target(size=size), importance_of(model) if weighted else None)


def importance_of(model: Model, without: str = "nothing") -> dict[str, ggml.Floats]:
    """Ones for all tensors but those with this in their names."""
    return {
        t.name: np.ones((t.matrices, t.columns), np.float32)
        for t in model.tensors
        if without not in t.name and t.quantizable
    }


def smallest(model: Model, weighted: bool = False) -> int:
    """The size that the error for a hopeless one names."""
    with pytest.raises(BudgetError, match="1 bytes are too few: the smallest file") as caught:
        plan_of(model, 1, weighted)
    match = re.search(r"smallest file of this model takes (\d+)", str(caught.value))
    assert match
    return int(match[1])


def cost(model: Model, plan: Plan) -> float:
    """Predicted cost: prior times error, over all tensors."""
    layers = 1 + max(role_of(tensor.name).layer or 0 for tensor in model.tensors)
    return sum(
        role_of(t.name).prior(layers, True)
        * error(ggml.type_named(plan.tensors[t.name].type), t.source_type)
        for t in model.tensors
        if not t.kept
    )


def check(model: Model, plan: Plan, weighted: bool) -> None:
    """Kept tensors are F32, types respect the range that the plan names and the importance."""
    floors = {"default": (4.25, 5.5), "wide": (2.0, 4.25), "widest": (0, 0)}[plan.solver["ranges"]]
    for tensor in model.tensors:
        kind = ggml.type_named(plan.tensors[tensor.name].type)
        if KEPT.fullmatch(tensor.name) or tensor.name == "rope_freqs.weight":
            assert kind.name == "f32", tensor.name
            continue
        assert kind.bpw >= floors["_exps" not in tensor.name] and kind.fits(tensor.columns)
        unweighted = not weighted or tensor.name == "token_embd.weight"
        assert not (unweighted and kind.name in NEEDS_IMPORTANCE), (tensor.name, kind)


@given(size=st.integers(0, EVERYTHING), weighted=st.booleans())
@settings(max_examples=40)
def test_a_file_is_never_larger_than_asked(demo, size, weighted):
    try:
        plan = plan_of(demo, size, weighted)
    except BudgetError:
        assert size < smallest(demo, weighted)
        return

    assert api.planned_size(demo, plan) <= size
    check(demo, plan, weighted)


@given(size=st.integers(8 * 10**9, 60 * 10**9), weighted=st.booleans())
@settings(max_examples=10)
def test_a_file_of_the_real_model_is_never_larger_than_asked(real, size, weighted):
    """And little is left over: less than the largest step of one tensor."""
    plan = plan_of(real, size, weighted)

    written = api.planned_size(real, plan)
    assert written <= size
    assert written > size - 10**9 or written > 50 * 10**9
    check(real, plan, weighted)


@pytest.mark.parametrize("size", [1_000_000, 1_500_000, 2_345_678, 10_000_000])
def test_a_written_file_has_the_planned_size(size, checkpoint, tmp_path):
    model = api.open_source(checkpoints.build(tmp_path / "model", checkpoint))

    plan = api.quantize_model(model, tmp_path / "a.gguf", Target(size=size))

    assert size >= (tmp_path / "a.gguf").stat().st_size == api.planned_size(model, plan)
    with GGUFFile(tmp_path / "a.gguf") as file:
        assert {name: str(info.type) for name, info in file.tensors.items()} == {
            name: entry.type for name, entry in plan.tensors.items()
        }
        assert (plan.size, plan.weights) == (file.tensor_bytes, file.weights)


@given(rooms=st.tuples(st.integers(0, EVERYTHING), st.integers(0, EVERYTHING)), w=st.booleans())
@settings(max_examples=40)
def test_more_bytes_never_cost_more(demo, rooms, w):
    """Of two plans from the same range; a narrower range is a belief, which can cost."""
    names = importance_of(demo) if w else ()
    least = budget.smallest(demo, names)
    few, many = (plan_weights(demo, max(room, least), {}, names) for room in sorted(rooms))

    assert few.size <= max(least, min(rooms)) and many.size <= max(least, *rooms)
    if few.solver == many.solver:
        assert cost(demo, many) <= cost(demo, few) * (1 + 1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_smallest_size_that_an_error_names_can_be_had(demo, weighted):
    """And a byte less cannot."""
    least = smallest(demo, weighted)

    plan = plan_of(demo, least, weighted)
    assert api.planned_size(demo, plan) <= least
    check(demo, plan, weighted)
    with pytest.raises(BudgetError, match=str(least)):
        plan_of(demo, least - 1, weighted)


def test_a_tensor_without_importance_gets_no_type_that_needs_it(demo, tmp_path):
    """As of a text that reached no expert of a block, or a file of llama-imatrix's."""
    some = importance_of(demo, without="_exps")
    plan = api.make_plan(demo, Target(size=2_500_000), some)

    experts = {entry.type for name, entry in plan.tensors.items() if "_exps.weight" in name}
    others = {entry.type for name, entry in plan.tensors.items() if "_exps" not in name}
    assert not experts & NEEDS_IMPORTANCE and others & NEEDS_IMPORTANCE
    api.quantize_model(demo, tmp_path / "a.gguf", Target(plan=plan), some)


def test_enough_room_keeps_every_weight(demo):
    """Everything stays as the source has it."""
    plan = plan_of(demo, EVERYTHING)

    assert {"bf16", "f32"} == {entry.type for entry in plan.tensors.values()}
    assert "default" == plan.solver["ranges"]


@given(bpw=st.floats(2.5, 17), weighted=st.booleans())
@settings(max_examples=20)
def test_bits_per_weight_are_never_more_than_asked(demo, bpw, weighted):
    plan = plan_bpw(demo, bpw, importance_of(demo) if weighted else ())

    assert plan.bpw <= bpw
    check(demo, plan, weighted)


@pytest.mark.parametrize("bpw", [float("nan"), float("inf"), 1e308])
def test_what_is_no_number_of_bits_is_refused(bpw, demo):
    with pytest.raises(UsageError, match="bits per weight: wanted a number"):
        plan_bpw(demo, bpw, ())


@pytest.mark.parametrize("bpw", [0, -1, 1.5])
def test_too_few_bits_are_refused(bpw, demo):
    with pytest.raises(BudgetError, match="too few.*bits per weight"):
        plan_bpw(demo, bpw, ())


@pytest.mark.parametrize("columns", [32, 64, 192, 256, 704, 2112, 2816, 33])
@pytest.mark.parametrize("source", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("weighted", [False, True])
def test_candidates_are_a_front_of_size_against_error(columns, source, weighted):
    """Every step up costs bits and saves error; the source's own type ends it, without error."""
    kinds = ladder(columns, source, weighted)

    assert all(kind.fits(columns) for kind in kinds)
    assert sorted({kind.bpw for kind in kinds}) == [kind.bpw for kind in kinds]
    errors = [error(kind, source) for kind in kinds]
    assert sorted(set(errors), reverse=True) == errors
    assert (source, 0) == (kinds[-1].name, errors[-1])
    assert weighted or not NEEDS_IMPORTANCE & {kind.name for kind in kinds}
