"""A finished file held against its source: the loss that eval finds, beside the one predicted."""

from dataclasses import replace
from pathlib import Path

import pytest

from gemcut import api
from gemcut.api import base
from gemcut.demo.text import held_out_text
from gemcut.errors import PlanError, TextError
from gemcut.eval.compare import compare
from gemcut.eval.scope import Means
from gemcut.eval.texts.text import Text
from gemcut.plan import Measured, Plan
from gemcut.quantize.artefacts import Artefacts
from gemcut.quantize.calibration import dealt
from gemcut.quantize.identity import VERSION, model_key
from gemcut.runtime.machine.inspection import inspect_machine


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(held_out_text()[:8000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plan(checkpoint: Path) -> Plan:
    """A plan that predicts something."""
    plan = api.make_plan(api.open_source(checkpoint), api.Target("q4_k_m"))
    return replace(plan, predicted={"kld": 0.01})


def validate(source: Path, output: Path, plan: Plan, texts, **options) -> Measured:
    model = api.open_source(source)
    return api.validate(model, output, plan, texts, 4, 64, threads=1, **options)


def test_the_loss_is_that_of_eval_on_a_part_that_nothing_else_read(q4_k_m, bf16, plan, text):
    """Against the source, where that is a GGUF."""
    own = Text.of("text", dealt(text.read_text(), "validation"))

    found = validate(bf16, q4_k_m, plan, [text])

    kld = compare([q4_k_m], bf16, [own], 64, 4, means=Means(1)).rows[1].summary.kld
    assert kld
    assert (kld.value, kld.error) == (found.kld, found.se)
    assert (0.01, 4, "bf16") == (found.predicted, found.chunks, found.reference)
    assert 0 < found.se < found.kld
    assert own.sha256 == found.text


def test_a_reference_is_made_and_removed(q4_k_m, bf16, checkpoint, plan, text, tmp_path):
    """Of a checkpoint, in BF16: the same numbers as against a BF16 GGUF."""
    output, told = tmp_path / "m.gguf", []
    output.write_bytes(q4_k_m.read_bytes())

    found = validate(checkpoint, output, plan, [text], tell=told.append)

    assert found == validate(bf16, q4_k_m, plan, [text])
    assert "m.gguf.reference: a reference in bf16 is made" in told[0]
    assert ["m.gguf"] == [path.name for path in tmp_path.iterdir()]


def test_a_reference_that_does_not_fit_is_q8_0(
    q4_k_m, checkpoint, plan, text, tmp_path, monkeypatch
):
    small = replace(inspect_machine(), ram_available=16_000_000)
    monkeypatch.setattr(base, "inspect_machine", lambda: small)
    output = tmp_path / "m.gguf"
    output.write_bytes(q4_k_m.read_bytes())

    assert "q8_0" == validate(checkpoint, output, plan, [text]).reference


def test_the_file_that_was_measured_on_is_the_reference(
    q4_k_m, q8_0, checkpoint, plan, text, tmp_path
):
    """If it is still there, and of this source."""
    folder, model = tmp_path / "m.gguf.gemcut", api.open_source(checkpoint)
    artefacts = Artefacts(folder)
    artefacts.path("q8_0.gguf").write_bytes(q8_0.read_bytes())
    artefacts.keep("q8_0.gguf", {"version": VERSION, "source": model_key(model)})

    found = validate(checkpoint, q4_k_m, plan, [text], folder=folder)

    assert "q8_0" == found.reference
    wanted = validate(q8_0, q4_k_m, plan, [text])
    assert (wanted.kld, wanted.se) == (found.kld, found.se)


def test_the_built_in_text_will_do(q4_k_m, bf16, plan):
    """Its conversations framed as the model wants them."""
    found = validate(bf16, q4_k_m, replace(plan, predicted={}), [])

    assert 0 < found.kld < 1
    assert found.predicted is None


def test_what_was_measured_is_put_into_plans(plan, tmp_path):
    """Once, into those that are there; a file that is no plan is left alone."""
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    plan.write(one)
    first = Measured(0.02, 0.001, 0.01, "t", 8, "bf16")
    second = replace(first, predicted=None)

    for measured in (first, first, second):
        api.record(measured, [one, other])

    assert (first, second) == Plan.read(one).measured
    assert not other.exists()
    other.write_text("mine")
    with pytest.raises(PlanError, match="other.json: not a plan"):
        api.record(first, [other])
    assert "mine" == other.read_text()


def test_a_text_too_short_is_refused(q4_k_m, bf16, plan, tmp_path):
    (tmp_path / "short.txt").write_text("too short")

    with pytest.raises(TextError, match="short.txt"):
        validate(bf16, q4_k_m, plan, [tmp_path / "short.txt"])
