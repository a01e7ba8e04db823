"""A sensitivity is a file a person can read, diff and keep; what is none is said to be none."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.errors import OutputError, PlanError, SensitivityError
from gemcut.sensitivity import GroupWeight, Sensitivity
from gemcut.tensor_sensitivity import LocalError, TensorSensitivity, candidate

AMOUNTS = st.floats(0, 1e50)
DIGESTS = st.text(max_size=5)
CANDIDATES = st.sampled_from(["q4_k", "q4_k@768", "iq1_m", "bf16", "q8_0@32"])
ERRORS = st.builds(LocalError, AMOUNTS, AMOUNTS)
GROUPS = ("attention/0-1", "experts_down/0-0", "output")
TENSORS = st.builds(
    TensorSensitivity,
    st.sampled_from(GROUPS),
    st.dictionaries(CANDIDATES, ERRORS, max_size=3),
    st.floats(0, 1),
    st.just((0.75, 0.25)),
    st.just((0.5, 0.5)),
)
POINTS = st.tuples(AMOUNTS, st.floats(-1e9, 1e9), AMOUNTS)
WEIGHTS = st.builds(
    GroupWeight,
    AMOUNTS,
    AMOUNTS,
    st.sampled_from(["prior", "probe"]),
    st.lists(POINTS, max_size=2).map(tuple),
)
SENSITIVITIES = st.builds(
    Sensitivity,
    architecture=DIGESTS,
    source=DIGESTS,
    imatrix=st.none() | DIGESTS,
    text=st.none() | DIGESTS,
    settings=st.dictionaries(DIGESTS, DIGESTS | st.integers(0, 9) | AMOUNTS, max_size=3),
    groups=st.fixed_dictionaries(dict.fromkeys(GROUPS, WEIGHTS)),
    tensors=st.dictionaries(st.sampled_from(["a", "blk.0.b", "é\n"]), TENSORS, max_size=3),
)


@given(SENSITIVITIES)
def test_a_sensitivity_survives_writing_and_reading(tmp_path_factory, sensitivity):
    """Every number is the same to the last bit."""
    path = tmp_path_factory.getbasetemp() / "sensitivity.json"

    sensitivity.write(path)

    assert sensitivity == Sensitivity.read(path)


@given(SENSITIVITIES)
def test_equal_sensitivities_are_equal_files_of_a_line_per_tensor(sensitivity):
    """In whatever order they were put in, so that diff shows differences alone."""
    turned = replace(sensitivity, tensors=dict(reversed(sensitivity.tensors.items())))
    lines = sensitivity.to_json().splitlines()

    assert sensitivity.to_json() == turned.to_json()
    assert len(lines) == 12 + len(sensitivity.groups) + len(sensitivity.tensors)


GOOD = {
    "version": 1,
    "architecture": "gemma4",
    "source": "5ource",
    "imatrix": "1matrix",
    "text": None,
    "settings": {"rows": 64},
    "groups": {"g": {"weight": 2.0, "se": 0.5, "source": "prior", "points": [[0.1, -0.1, 0]]}},
    "tensors": {
        "a": {"group": "g", "errors": {"q4_k": [0.01, 0.001], "q8_0": [0, 0]}},
        "b": {"group": "g", "errors": {"q4_k": [0.02, 0.002]}, "lattice": 0.5},
        "b#gate": {"group": "g", "errors": {"q4_k": [0.01, 0.002]}},
        "b#up": {"group": "g", "errors": {"q8_0": [0.0001, 0]}},
    },
}


def changed(path: str, value: object) -> str:
    """GOOD as JSON with another value at a path; DROP leaves the name out."""
    document = json.loads(json.dumps(GOOD))
    *inner, last = path.split("/")
    place = document
    for name in inner:
        place = place[name]
    if value is DROP:
        del place[last]
    else:
        place[last] = value
    return json.dumps(document)


DROP = object()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a sensitivity"),
        ("[" * 100_000, "not a sensitivity"),
        ("[]", "not a sensitivity: it has no version"),
        ("{}", "not a sensitivity: it has no version"),
        ('{"version": 1, "version": 1}', "not a sensitivity: a name is there twice"),
        (json.dumps(GOOD)[:-9], "not a sensitivity"),
        (changed("version", 2), "a sensitivity of another version; wanted 1"),
        (changed("version", True), "a sensitivity of another version; wanted 1"),
        (changed("text", DROP), "not a sensitivity: the file: 'text' is missing"),
        (changed("size", 4), "not a sensitivity: the file: 'size' is no field"),
        (changed("source", None), "not a sensitivity.*source is None, wanted a string"),
        (changed("imatrix", 4), "not a sensitivity.*imatrix is 4, wanted a string"),
        (changed("settings", []), "not a sensitivity.*settings is .*, wanted names"),
        (changed("settings/rows", [4]), "not a sensitivity.*rows is .*, wanted a number"),
        (changed("groups", None), "not a sensitivity.*groups is None"),
        (changed("groups/g", DROP), "not a sensitivity: a is of the group 'g', which has no"),
        (changed("groups/g/weight", -1), "not a sensitivity.*weight is -1.0, wanted 0 or more"),
        (changed("groups/g/weight", float("nan")), "not a sensitivity: NaN is no number"),
        (changed("groups/g/se", 1e999), "not a sensitivity: Infinity is no number"),
        (changed("groups/g/se", True), "not a sensitivity.*se is True, wanted a number"),
        (changed("groups/g/se", 1e200), "not a sensitivity.*se is 1e[+]200, wanted a number"),
        (changed("groups/g/source", "x"), "not a sensitivity.*source is 'x', wanted prior or"),
        (changed("groups/g/points", [[1, 2]]), "not a sensitivity.*wanted a list of 3"),
        (changed("groups/g/points", [[-1, 2, 3]]), "not a sensitivity.*points is -1.0"),
        (changed("tensors/a", []), "not a sensitivity.*tensors: a is .*, wanted group, errors"),
        (changed("tensors/a/group", "h"), "not a sensitivity: a is of the group 'h'"),
        (changed("tensors/a/errors/q4_k", 0.1), "not a sensitivity.*q4_k is 0.1, wanted a list"),
        (changed("tensors/a/errors/q4_k", [-1, 0]), "not a sensitivity.*q4_k is -1.0"),
        (changed("tensors/a/errors/q4_k", ["0", 0]), "not a sensitivity.*q4_k is '0'"),
        (changed("tensors/a/errors/q4_z", [0, 0]), "not a sensitivity: unknown candidate"),
        (changed("tensors/a/errors/q4_k@100", [0, 0]), "not a sensitivity.*whole blocks"),
        (changed("tensors/b/lattice", 1.5), "not a sensitivity.*lattice is 1.5, wanted 0 to 1"),
        (changed("tensors/b/experts", [2]), "not a sensitivity.*experts is 2.0, wanted 0 to 1"),
        (changed("tensors/b/experts", {"q4_k": [1]}), "not a sensitivity.*experts is .*a list"),
        (changed("tensors/b/routed", [0.5]), "not a sensitivity.*b is known of 0 and 1 experts"),
        (changed("tensors/b", DROP), "not a sensitivity: b#gate is a part of what is not there"),
    ],
)
def test_what_is_no_sensitivity_is_refused(text, words, tmp_path):
    (tmp_path / "s.json").write_text(text)

    with pytest.raises(SensitivityError, match=f"s.json: {words}"):
        Sensitivity.read(tmp_path / "s.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
PATHS = [*GOOD, "groups/g", "groups/g/weight", "groups/g/points", "tensors/a", "tensors/a/errors"]


@given(st.sampled_from([*PATHS, "tensors/a/errors/q4_k", "tensors/b/lattice"]), JSON)
def test_any_other_value_is_a_sensitivity_or_an_error(path, value):
    """A damaged file that still is one can be written again."""
    try:
        found = Sensitivity.from_json(changed(path, value), "s.json")
    except SensitivityError as error:
        assert str(error).startswith("s.json: ")
        return

    assert found == Sensitivity.from_json(found.to_json(), "again")


@given(st.integers(0, len(json.dumps(GOOD)) - 1))
def test_no_beginning_of_a_file_is_a_sensitivity(length):
    with pytest.raises(SensitivityError):
        Sensitivity.from_json(json.dumps(GOOD)[:length], "s.json")


def test_files_that_cannot_be_read_or_written_are_said(tmp_path, monkeypatch):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")

    with pytest.raises(SensitivityError, match="none.json: cannot be read: No such file"):
        Sensitivity.read(tmp_path / "none.json")
    with pytest.raises(SensitivityError, match="binary: not a sensitivity"):
        Sensitivity.read(tmp_path / "binary")
    with pytest.raises(OutputError, match="s.json: cannot be written: No such file"):
        Sensitivity.from_json(json.dumps(GOOD), "good").write(tmp_path / "none" / "s.json")
    monkeypatch.setattr("gemcut.artefact.MAX_SIZE", 1)
    with pytest.raises(SensitivityError, match="binary: not a sensitivity: longer than 1 bytes"):
        Sensitivity.read(tmp_path / "binary")


@pytest.mark.parametrize("name", ["q4_k", "f32", "q4_k@768", "iq4_nl@704"])
def test_a_candidate_is_what_it_is_called(name):
    assert name == str(candidate(name))


@pytest.mark.parametrize(
    "name", ["", "@", "q4", "Q4_K", "q4_k@", "q4_k@0", "q4_k@0768", "q4_k@-256"]
)
def test_what_is_no_candidate_is_refused(name):
    with pytest.raises(PlanError, match="unknown candidate"):
        candidate(name)


def test_the_prediction_is_the_weighted_sum():
    """Weights are wrong for a whole group, errors of tensors independently of each other."""
    found = Sensitivity.from_json(json.dumps(GOOD), "good")

    kld, se = found.predict({"a": "q4_k", "b": "q4_k", "norm": "f32"})

    assert kld == pytest.approx(2 * 0.03)
    assert se == pytest.approx(((0.5 * 0.03) ** 2 + 4 * (0.001**2 + 0.002**2)) ** 0.5)
    assert (0, 0) == replace(found, tensors={}).predict({})


def test_types_per_expert_are_predicted():
    """Each expert has its share of the error of the type that it has."""
    found = Sensitivity.from_json(json.dumps(GOOD), "good")
    tensor = replace(found.tensors["a"], experts=(0.75, 0.25), routed=(0.5, 0.5))
    mixed = replace(found, tensors={**found.tensors, "a": tensor})
    first, second = (tensor.errors[name].mean for name in ("q4_k", "q8_0"))

    kld, _ = mixed.predict({"a": ["q4_k", "q8_0"], "b": "q4_k"})

    without, _ = mixed.predict({"a": "q4_k", "b": "q4_k"})
    assert without - kld == pytest.approx(2 * 0.25 * (first - second))
    assert mixed.predict({"a": ["q4_k"] * 2, "b": "q4_k"}) == pytest.approx(
        found.predict({"a": "q4_k", "b": "q4_k"})
    )
    for types, words in ((["q4_k"], "1 experts; 2 are known"), (["q2_k"] * 2, "q2_k was not")):
        with pytest.raises(PlanError, match=words):
            mixed.predict({"a": types, "b": "q4_k"})


def test_a_fused_tensor_is_predicted_whole_or_in_parts():
    found = Sensitivity.from_json(json.dumps(GOOD), "good")

    kld, _ = found.predict({"a": "q8_0", "b#gate": "q4_k", "b#up": "q8_0"})

    assert kld == pytest.approx(2 * 0.0101)


@pytest.mark.parametrize(
    ("types", "words"),
    [
        ({"a": "q4_k"}, "b: no type is given"),
        ({"a": "q4_k", "b#gate": "q4_k"}, "b#up: no type is given"),
        ({"a": "q2_k", "b": "q4_k"}, "a: q2_k was not measured, but q4_k, q8_0"),
        ({"a": "q4_k", "b": "q4_k", "b#up": "q8_0"}, "b: given both as one tensor and in parts"),
    ],
)
def test_what_was_not_measured_is_not_predicted(types, words):
    with pytest.raises(PlanError, match=words):
        Sensitivity.from_json(json.dumps(GOOD), "good").predict(types)
