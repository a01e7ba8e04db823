"""A plan is a file a person can read, diff and keep; what is not a plan is said to be none."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.errors import OutputError, PlanError
from gemcut.plan import Entry, Measured, Plan

NAMES = st.sampled_from([f"blk.{i}.{part}.weight" for i in range(3) for part in ("attn_q", "x")])
TYPES = st.sampled_from(["f32", "q4_k", "iq4_nl"])
PLACES = st.sampled_from(["cpu", "gpu0", "gpu1"])
MEASURED = st.builds(
    Measured,
    kld=st.floats(-1, 1),
    se=st.floats(0, 1),
    predicted=st.floats(0, 1),
    text=st.just("digest"),
    chunks=st.integers(1, 9),
    reference=st.just("q8_0"),
)
ENTRIES = st.builds(
    Entry,
    type=TYPES,
    device=st.none() | PLACES,
    padded_to=st.none() | st.integers(1, 4096),
    split=st.booleans(),
    experts=st.none() | st.lists(TYPES, min_size=1, max_size=3).map(tuple),
    wanted=st.none() | TYPES,
    error=st.none() | st.floats(0, 1),
)
PLANS = st.builds(
    Plan,
    architecture=st.just("gemma4"),
    weights=st.integers(1, 10**12),
    size=st.integers(0, 10**12),
    request=st.dictionaries(st.sampled_from(["type", "size"]), TYPES | st.integers()),
    solver=st.dictionaries(st.sampled_from(["name", "ranges"]), TYPES),
    tensors=st.dictionaries(NAMES, ENTRIES, max_size=4),
    sources=st.dictionaries(st.sampled_from(["model", "imatrix"]), st.none() | TYPES),
    ledger=st.dictionaries(PLACES, st.dictionaries(TYPES, st.integers()), max_size=2),
    predicted=st.dictionaries(TYPES, st.floats(0, 1)),
    measured=st.lists(MEASURED, max_size=2).map(tuple),
)


@given(PLANS)
def test_a_plan_survives_writing_and_reading(tmp_path_factory, plan):
    path = tmp_path_factory.getbasetemp() / "plan.json"

    plan.write(path)

    assert plan == Plan.read(path)
    assert plan == Plan.from_json(plan.to_json(indent=None), "short")


@given(PLANS)
def test_equal_plans_are_equal_files(plan):
    """In whatever order the tensors were put in, so that diff shows differences alone."""
    turned = Plan(**{**vars(plan), "tensors": dict(reversed(plan.tensors.items()))})

    assert plan.to_json() == turned.to_json()


def test_a_plan_says_no_more_than_it_must():
    """Fields that say nothing about a tensor are left out; no path and no host is in it."""
    plan = Plan("gemma4", 64, 36, {"type": "q4_0"}, {"name": "uniform"}, {"a": Entry("q4_0")})

    assert json.loads(plan.to_json()) == {
        "version": 2,
        "architecture": "gemma4",
        "weights": 64,
        "size": 36,
        "request": {"type": "q4_0"},
        "solver": {"name": "uniform"},
        "tensors": {"a": {"type": "q4_0"}},
    }


def test_bits_per_weight_and_fallbacks():
    tensors = {"a": Entry("q4_0"), "b": Entry("q5_0", wanted="q4_k")}
    plan = Plan("gemma4", 64, 36, {}, {}, tensors)

    assert 4.5 == plan.bpw
    assert {"b": tensors["b"]} == plan.fallbacks


GOOD = {
    "version": 2,
    "architecture": "gemma4",
    "weights": 64,
    "size": 36,
    "request": {},
    "solver": {},
    "tensors": {"a": {"type": "q4_0"}},
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a plan"),
        ("[]", "not a plan"),
        ("null", "not a plan"),
        ("{}", "not a plan"),
        ("[" * 100_000, "not a plan"),
        (json.dumps(GOOD | {"version": 1}), "a plan of another version; wanted 2"),
        (json.dumps(GOOD | {"weights": 0}), "not a plan: it has no weights"),
        (json.dumps(GOOD | {"weights": "64"}), "not a plan"),
        (json.dumps(GOOD | {"size": None}), "not a plan: size is None"),
        (json.dumps(GOOD | {"size": -1}), "not a plan: size is -1"),
        (json.dumps(GOOD | {"request": None}), "not a plan"),
        (json.dumps(GOOD | {"unknown": 1}), "not a plan.*unknown"),
        (json.dumps(GOOD | {"tensors": []}), "not a plan"),
        (json.dumps(GOOD | {"tensors": {"a": "q4_0"}}), "not a plan"),
        (json.dumps(GOOD | {"tensors": {"a": {}}}), "not a plan.*type"),
        (json.dumps(GOOD | {"tensors": {"a": {"type": 4}}}), "not a plan.*type is 4"),
        (json.dumps(GOOD | {"tensors": {"a": {"type": "q4_0", "bits": 4}}}), "not a plan.*bits"),
        (json.dumps(GOOD | {"tensors": {"a": {"type": "q4_0", "device": "CUDA0"}}}), "not a.*gpu0"),
        (json.dumps(GOOD | {"ledger": {"cpu": {"kv": 1.5}}}), "not a plan: ledger: cpu: kv is 1.5"),
        (json.dumps(GOOD | {"measured": [{"kld": 1}]}), "not a plan: measured is .*reference"),
    ],
)
def test_what_is_not_a_plan_is_refused(text, words, tmp_path):
    (tmp_path / "plan.json").write_text(text)

    with pytest.raises(PlanError, match=f"plan.json: {words}"):
        Plan.read(tmp_path / "plan.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), JSON, max_size=3))
def test_any_other_value_is_a_plan_or_a_plan_error(changes):
    """A damaged plan that still is one can be counted and written again."""
    try:
        plan = Plan.from_json(json.dumps(GOOD | changes), "plan.json")
    except PlanError as error:
        assert str(error).startswith("plan.json: ")
        return

    assert plan == Plan.from_json(plan.to_json(), "again")
    assert plan.bpw >= 0
    assert set(plan.fallbacks) <= set(plan.tensors)


def test_files_that_cannot_be_read_or_written_are_said(tmp_path):
    plan = Plan("gemma4", 64, 36, {}, {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")

    with pytest.raises(PlanError, match="none.json: cannot be read: No such file"):
        Plan.read(tmp_path / "none.json")
    with pytest.raises(PlanError, match="binary: not a plan"):
        Plan.read(tmp_path / "binary")
    with pytest.raises(OutputError, match="none/plan.json: cannot be written: No such file"):
        plan.write(tmp_path / "none" / "plan.json")
    with pytest.raises(OutputError, match="is a folder; wanted a file name"):
        plan.write(tmp_path)
    assert ["binary"] == [path.name for path in tmp_path.iterdir()]
