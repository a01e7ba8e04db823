"""`gemcut bench`, and what it measures: a tiny model, no times that a busy machine could fail."""

import json

import pytest

from gemcut.engine import ContextOptions
from gemcut.errors import UsageError
from gemcut.llama import Context, Model
from gemcut.profile import Processor, Profile
from gemcut.runtime.speed.measured import speed, speeds
from gemcut.runtime.speed.records import records
from tests.shell import run

QUICK = ["-p", "16", "-n", "4", "-r", "1", "-t", "1"]
MACHINE = Profile(
    "this machine",
    Processor("cpu", "host", 8 << 30, 0, 10e9, flops=50e9, source="measured"),
    operation=1e-6,
)


@pytest.fixture(scope="module")
def context(q8_0):
    """Room for a little."""
    options = ContextOptions(256, n_batch=32, n_ubatch=32, threads=1, n_outputs=1)
    with Model.load(q8_0) as model, Context(model, options) as made:
        yield made


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """This machine's speeds without measuring them; records in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("gemcut.api.running.this_machine", lambda threads: MACHINE)
    return tmp_path / "gemcut"


def bench(*words):
    return run("bench", *words)


def test_every_depth_is_measured(context):
    """Once each, in ascending order; the last run's tokens are in the context."""
    told = []
    found = speeds(context, (64, 0, 64), 40, 5, 2, lambda *step: told.append(step))

    assert [0, 64] == [each.depth for each in found]
    assert all(each.prefill > 0 and each.decode > 0 for each in found)
    assert all(each.prefill_spread >= 0 and each.decode_spread >= 0 for each in found)
    assert {(40, 5, 2, 1)} == {(s.n_prompt, s.n_generate, s.repeats, s.threads) for s in found}
    assert context.held() == 64 + 5
    assert told[-1] == (len(told), len(told))


@pytest.mark.parametrize("counts, phase", [((0, 4), "prefill"), ((16, 0), "decode")])
def test_one_phase_alone_can_be_measured(context, counts, phase):
    """The other one is 0."""
    (found,) = speeds(context, (8,), counts[0], counts[1], repeats=1)

    assert getattr(found, phase) == 0
    assert found.prefill + found.decode > 0


@pytest.mark.parametrize(
    "depths, counts",
    [
        ((), (1, 1, 1)),
        ((-1,), (1, 1, 1)),
        ((0,), (0, 0, 1)),
        ((0,), (1, 1, 0)),
        ((0,), (-1, 1, 1)),
        ((250,), (7, 1, 1)),
    ],
)
def test_nothing_and_too_much_are_refused(context, depths, counts):
    """Before anything is computed."""
    with pytest.raises(UsageError):
        speeds(context, depths, *counts)


def test_a_file_is_measured_in_one_call(q8_0):
    """With an empty context."""
    found = speed(q8_0, 16, 4, repeats=1, threads=1)

    assert found.depth == 0 and found.prefill > 0 and found.decode > 0


def test_predicted_stands_beside_measured(machine, q8_0):
    """As a table, and every run is kept."""
    result = bench(q8_0, "--depth", "0,32", *QUICK)

    assert result.exit_code == 0, result.output
    assert "decode predicted" in result.stdout and "decode measured" in result.stdout
    assert "memory of cpu" in result.stdout
    assert [0, 32] == [run.depth for run in records(machine) if run.decode]
    assert 1 == sum(bool(run.memory) for run in records(machine))


def test_other_runs_are_compared(machine, q8_0):
    """In turn; as JSON with all that was planned."""
    result = bench(q8_0, *QUICK, "--compare", "-t 1 -ub 32 -ctk q8_0", "--compare=-t 1", "--json")
    assert result.exit_code == 0, result.output
    runs = json.loads(result.stdout)["runs"]

    assert ["as planned", "-t 1 -ub 32 -ctk q8_0", "-t 1"] == [run["flags"] for run in runs]
    assert runs[1]["placement"]["context"]["n_ubatch"] == 16  # no more than is read
    assert runs[1]["placement"]["context"]["type_k"] == "q8_0"
    for each in runs:
        (row,) = each["rows"]
        assert row["decode"]["measured"] > 0 and row["prefill"]["predicted"] > 0
        assert each["memory"]["cpu"]["measured"] > 0


def test_the_second_time_the_first_is_known(machine, q8_0):
    """Its measurements pull the prediction towards them."""
    first, second = (
        json.loads(bench(q8_0, *QUICK, "--json").stdout)["runs"][0]["rows"][0]["decode"]
        for _ in range(2)
    )
    between = sorted((first["predicted"], first["measured"]))

    assert between[0] <= second["predicted"] <= between[1]


@pytest.mark.parametrize(
    "words, what",
    [
        (["--depth", "many"], "many"),
        (["--compare", "-ub"], "--compare '-ub'"),
        (["--compare", "--nonsense"], "--nonsense"),
        (["--compare", "'-ub"], "--compare"),
        (["--compare", "model.gguf"], "--compare"),
        (["-c", "256", "-p", "300", "-n", "0"], "--depth"),
        (["-p", "0", "-n", "0"], "cannot measure"),
        (["-r", "0"], "-r"),
    ],
)
def test_wrong_usage_is_said(machine, q8_0, words, what):
    """With exit code 2, whatever is wrong with the words."""
    result = bench(q8_0, *words)

    assert result.exit_code == 2
    assert what in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_is_none_is_said(machine, tmp_path):
    """As everywhere."""
    (tmp_path / "no.gguf").write_bytes(b"nothing")
    result = bench(tmp_path / "no.gguf")

    assert result.exit_code == 1 and "no.gguf" in result.stderr
