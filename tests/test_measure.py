"""Measuring a model: one file says all of it, whoever interrupts; what cannot be is said first."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemcut import api
from gemcut.convert.model import Model
from gemcut.demo.text import held_out_text
from gemcut.errors import EngineError, OutputError, PlanError, TextError, UsageError
from gemcut.quantize.forecast import fitted, forecast, speeds
from gemcut.quantize.identity import digest, fingerprint
from gemcut.quantize.importance import importance_for
from gemcut.quantize.local_error import local_errors
from gemcut.quantize.measure import Request
from gemcut.quantize.probe import Probing, Sample
from gemcut.quantize.statistics import Statistics, write_statistics
from gemcut.quantize.subject import Sampling
from gemcut.quantize.tensor_errors import subjects
from gemcut.sensitivity import Sensitivity
from tests import checkpoints
from tests.measuring import CHEAP, uneven
from tests.shell import run

TEXT = held_out_text()[:6000]


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Model:
    """The demo's checkpoint."""
    return api.open_source(checkpoint)


@pytest.fixture(scope="module")
def statistics(model: Model) -> Statistics:
    """Activations; one expert was never reached."""
    return uneven(model)


@pytest.fixture(scope="module")
def imatrix(statistics: Statistics, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file."""
    path = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    write_statistics(path, statistics)
    return path


def measure(
    model: Model, output: Path, imatrix: Path | None, seed: int = 0, **options: object
) -> Sensitivity:
    """Measure a few types, on one thread."""
    request = Request(Sampling(seed=seed), CHEAP)
    return api.measure_sensitivity(model, output, imatrix, request, threads=1, **options)


def test_the_file_says_everything(model, imatrix, statistics, tmp_path):
    """All tensors that may be cut and their parts, weights of all groups, what it was made from."""
    lines: list[str] = []

    found = measure(model, tmp_path / "s.json", imatrix, tell=lines.append)

    assert found == Sensitivity.read(tmp_path / "s.json")
    cuttable = {t.name for t in model.tensors if not t.kept and t.quantizable}
    parts = {f"{n}#{p}" for n in cuttable if "gate_up" in n for p in ("gate", "up")}
    assert cuttable | parts == found.tensors.keys()
    assert ["s.json"] == [path.name for path in tmp_path.iterdir()]
    assert (fingerprint(model), digest(statistics), None) == (
        found.source,
        found.imatrix,
        found.text,
    )
    assert {"prior"} == {group.source for group in found.groups.values()}
    assert "experts_down/0-0" in found.groups
    assert all(error.se <= 0.1 * error.mean for error in by_role_errors(found))
    assert "measuring 53 tensors in 5 types" in lines[0]
    kld, se = found.predict(dict.fromkeys(cuttable, "q4_0"))
    assert 0 < kld < 1 and 0 < se < 1.01 * kld  # priors are wrong together, by as much as they say
    assert found.predict(dict.fromkeys(cuttable, "q8_0"))[0] < kld / 50
    assert (0, 0) == found.predict(dict.fromkeys(cuttable, "bf16"))


def by_role_errors(found: Sensitivity):
    """The errors of whole tensors in blocks, which have importance."""
    tensors = ((name, tensor) for name, tensor in found.tensors.items() if "ffn_down" not in name)
    return [
        e for name, t in tensors if "#" not in name and "blk" in name for e in t.errors.values()
    ]


def test_threads_and_order_change_nothing(model, imatrix, tmp_path):
    measure(model, tmp_path / "a.json", imatrix)
    given_back: list[int] = []
    turned = replace(model, tensors=model.tensors[::-1], release=given_back.append)
    request = Request(types=CHEAP[::-1])
    found = api.measure_sensitivity(turned, tmp_path / "b.json", imatrix, request, threads=2)
    other = measure(model, tmp_path / "c.json", imatrix, seed=1)

    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert other.tensors != Sensitivity.read(tmp_path / "a.json").tensors
    parts = {name.partition("#")[0] for name in found.tensors}
    assert len(given_back) >= len(parts), "what was read of each tensor is given back"
    assert not any(given_back), "no file is dropped: other runs may need it"


class Interrupted(Exception):
    """Stands for a signal."""


def interrupt(model: Model, output: Path, imatrix: Path, after: int) -> list[str]:
    """Begin to measure, and stop after so many tensors; what was told."""
    lines: list[str] = []

    def stop(done: int, total: int) -> None:
        if done == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        measure(model, output, imatrix, progress=stop, tell=lines.append)
    return lines


def test_interrupted_measuring_is_continued(model, imatrix, tmp_path, monkeypatch):
    """What was measured is not measured again, and the result is the same to the byte."""
    output = tmp_path / "s.json"
    measure(model, tmp_path / "whole.json", imatrix)
    assert (
        "what was measured is kept: the same command" in interrupt(model, output, imatrix, 20)[-1]
    )
    calls: list[str] = []

    def counted(each, sampling):
        calls.append(each.tensor.name)
        return local_errors(each, sampling)

    monkeypatch.setattr("gemcut.quantize.tensor_errors.local_errors", counted)

    measure(model, output, imatrix)

    assert 33 == len(calls)
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert ["s.json", "whole.json"] == sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("cut", [1, 40, 2000])
def test_a_torn_record_is_continued_before_the_tear(cut, model, imatrix, tmp_path):
    output, record = tmp_path / "s.json", tmp_path / ".s.json.unfinished"
    measure(model, tmp_path / "whole.json", imatrix)
    interrupt(model, output, imatrix, 4)
    record.write_bytes(record.read_bytes()[:-cut])

    measure(model, output, imatrix)

    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_other_work_is_not_continued(model, imatrix, tmp_path):
    """What differs is told, and the record stays; --restart throws it away."""
    output, record = tmp_path / "s.json", tmp_path / ".s.json.unfinished"
    interrupt(model, output, imatrix, 4)
    before = record.read_bytes()

    with pytest.raises(OutputError, match="another importance lies there.*--restart begins anew"):
        measure(model, output, None)
    with pytest.raises(OutputError, match=r"another sampling \(rows=512 .*seed=0, now .*seed=1\)"):
        measure(model, output, imatrix, seed=1)
    assert before == record.read_bytes()

    done: list[int] = []
    measure(model, output, imatrix, restart=True, progress=lambda now, total: done.append(now))
    assert list(range(54)) == done


def test_a_fingerprint_knows_a_model_wherever_it_lies(model, bf16, checkpoint, tmp_path):
    """A checkpoint and its 16-bit GGUF are one model, another seed's weights are not."""
    build = checkpoints.build
    one = api.open_source(build(tmp_path / "one", checkpoint))
    other = api.open_source(build(tmp_path / "other", checkpoint, checkpoints.Recipe(seed=1)))

    assert fingerprint(model) == fingerprint(api.open_source(bf16))
    assert 3 == len({fingerprint(model), fingerprint(one), fingerprint(other)})


def test_fewer_rows_are_taken_when_time_is_short(model, statistics):
    """The most that may be needed fits into the time, or it is said what is needed at least."""
    found = subjects(model, statistics, CHEAP)
    known = dict.fromkeys(CHEAP, 1e6)
    whole = forecast(found, Sampling(), known, 1)

    small = fitted(found, Sampling(), known, 1, whole.most / 4)

    assert small.first <= small.rows < Sampling.rows
    assert forecast(found, small, known, 2).most <= whole.most / 8
    assert fitted(found, Sampling(), known, 1, whole.most) == Sampling()
    with pytest.raises(UsageError, match="measuring takes at least .* minutes here"):
        fitted(found, Sampling(), known, 1, 1e-9)


def test_speeds_are_those_of_this_machine(model, statistics):
    found = speeds(each for s in subjects(model, statistics, CHEAP) for each in s.candidates)

    assert set(CHEAP) == found.keys()
    assert found["q8_0"] > found["q2_k"] > 0


def test_what_is_not_this_models_is_refused(model, statistics, checkpoint, tmp_path):
    stranger = checkpoints.build(tmp_path / "x", checkpoint, checkpoints.Recipe(hidden=512))
    none = replace(model, tensors=tuple(t for t in model.tensors if t.kept))

    with pytest.raises(PlanError, match="it was made for another model"):
        subjects(api.open_source(stranger), statistics)
    with pytest.raises(PlanError, match="unknown type 'q4_z'"):
        subjects(model, None, ["q4_z"])
    with pytest.raises(PlanError, match="nothing to measure"):
        subjects(none, None)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few chunks of what the demo's model was trained for."""
    path: Path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_probing_replaces_the_priors(model, imatrix, q8_0, text, tmp_path):
    """Errors stay what they are; groups and their weights are measured; interrupted, it goes on."""
    request = Request(types=CHEAP, probing=api.probing(q8_0, [text], chunks=2, n_ctx=64))
    plain = measure(model, tmp_path / "plain.json", imatrix)
    lines: list[str] = []

    def stop(done: int, total: int) -> None:
        if any("probing" in line for line in lines) and done == total - 5:
            raise Interrupted

    arguments = (model, tmp_path / "s.json", imatrix, request, 1)
    with pytest.raises(Interrupted):
        api.measure_sensitivity(*arguments, progress=stop, tell=lines.append)
    told: list[int] = []
    found = api.measure_sensitivity(
        *arguments, False, lambda done, _: told.append(done), lines.append
    )

    assert "probing 6 of 53 groups" in lines[-1]
    assert {"probe"} == {group.source for group in found.groups.values()}
    assert found.text and plain.text is None
    assert 2 == found.settings["probe_chunks"]
    assert found == Sensitivity.read(tmp_path / "s.json")
    for name, tensor in found.tensors.items():
        assert tensor.errors == plain.tensors[name].errors
        assert tensor.group in found.groups
    whole = api.measure_sensitivity(model, tmp_path / "w.json", imatrix, request, 1)
    assert whole.groups.keys() == found.groups.keys()


def test_another_text_to_probe_on_keeps_the_tensors_errors(
    model, imatrix, q8_0, text, tmp_path, monkeypatch
):
    """They do not depend on it; what groups cost does, and is measured anew."""
    output, lines = tmp_path / "s.json", []

    def requested(content: str) -> Request:
        probing = Probing(q8_0, content, Sample(64, 2))
        return Request(types=CHEAP, probing=probing)

    def stop(done: int, total: int) -> None:
        if any("probing" in line for line in lines) and done == total - 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        api.measure_sensitivity(
            model, output, imatrix, requested(TEXT), 1, progress=stop, tell=lines.append
        )
    monkeypatch.setattr("gemcut.quantize.tensor_errors.local_errors", None)  # not called
    found = api.measure_sensitivity(
        model, output, imatrix, requested(TEXT[::-1]), 1, tell=lines.append
    )
    monkeypatch.undo()

    assert any("another text or context to probe on: 47 groups are" in line for line in lines)
    assert "probing 53 of 53 groups" in lines[-1]
    anew = tmp_path / "anew.json"
    assert (
        found.text == api.measure_sensitivity(model, anew, imatrix, requested(TEXT[::-1]), 1).text
    )


def test_tensors_without_importance_are_told(model, statistics):
    """Which, and how many: they are cut as if all their columns counted alike."""
    whole = importance_for(statistics, model.tensors)
    few = {name: each for name, each in whole.items() if name == "blk.0.attn_q.weight"}

    told, more = api.missing_importance(model, whole), api.missing_importance(model, few)

    assert told and more
    assert "the importance matrix lacks 1 of 53 tensors, which are cut unweighted" in told
    assert told.endswith(": token_embd.weight")
    assert more.endswith("and 48 more")
    assert api.missing_importance(model, None) is None
    everything = {t.name: np.ones((1, t.columns), np.float32) for t in model.tensors}
    assert api.missing_importance(model, everything) is None


def test_the_command_measures_and_tells(checkpoint, imatrix, tmp_path):
    """A table of roles and types, and what of it is a prior."""
    output = tmp_path / "s.json"
    command = ["measure", checkpoint, "--imatrix", imatrix, "-o", output, "-t", 1]

    result = run(*command, "--types", "q4_0,q4_k")
    document = json.loads(run(*command, "--types", "q4_0,q4_k", "--json").stdout)

    assert result.exit_code == 0, result.stderr
    assert "experts down" in result.stdout and "q4_k@256" in result.stdout
    assert "is a prior: believed, not measured" in result.stderr
    assert {"mean", "deviation", "count"} == document["roles"]["attention"]["q4_k"].keys()
    assert (
        "q4_0 q4_k" == document["settings"]["types"] == Sensitivity.read(output).settings["types"]
    )


def test_bad_input_is_one_line(checkpoint, imatrix, tmp_path):
    """Of the command too: a truncated imatrix, an unknown type, too few minutes, a bad output."""
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(imatrix.read_bytes()[:-40])
    command = ["measure", checkpoint, "-o", tmp_path / "s.json", "--types", "q8_0"]

    assert 2 == run(*command, "--text", torn).exit_code
    assert 2 == run(*command, "--seed", "-1").exit_code
    for options, words in {
        ("--imatrix", torn): "truncated",
        ("--imatrix", checkpoint / "config.json"): "config.json",
        ("--types", "q4_z"): "unknown type 'q4_z'",
        ("--types", ""): "unknown type ''",
        ("--types", "q8_0, iq2_xxs"): "iq2_xxs: no tensor can be measured in it",
        ("--types", "f32"): "f32: no tensor can be measured in it",
        ("--minutes", "nan"): "nan minutes",
        ("--minutes", "1e-9"): "measuring takes at least",
        ("-o", tmp_path): "is a folder",
        ("-o", tmp_path / "none" / "s.json"): "cannot be written",
        ("-o", checkpoint / "config.json"): "is read or written here, too",
    }.items():
        result = run(*command, *options)
        assert isinstance(result.exception, SystemExit)
        assert result.exit_code and words in result.stderr, (options, result.stderr)
        assert 1 == len(result.stderr.strip().splitlines()) or "--minutes" in options
    assert ["torn.gguf"] == [path.name for path in tmp_path.iterdir()]


def test_nothing_is_left_of_what_measured_nothing(model, imatrix, tmp_path):
    told = interrupt(model, tmp_path / "s.json", imatrix, 0)

    assert [] == list(tmp_path.iterdir())
    assert not any("--restart" in line for line in told)


def test_a_coarse_file_to_probe_is_found_out_first(checkpoint, q4_k_m, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("def f(): pass\n" * 400)
    request = Request(probing=api.probing(q4_k_m, [text]))

    with pytest.raises(EngineError, match="a coarser type hides the errors"):
        api.measure_sensitivity(
            api.open_source(checkpoint), tmp_path / "s.json", request=request, tell=print
        )
    assert [text] == list(tmp_path.iterdir())


def test_what_would_end_a_probe_ends_the_measurement_first(checkpoint, q8_0, tmp_path):
    """A text that is too short is found out before minutes of measuring, and nothing is left."""
    text = tmp_path / "short.txt"
    text.write_text("def f(): pass")
    told: list[str] = []
    request = Request(probing=api.probing(q8_0, [text]))

    with pytest.raises(TextError, match="too short"):
        api.measure_sensitivity(
            api.open_source(checkpoint), tmp_path / "s.json", request=request, tell=told.append
        )
    assert [text] == list(tmp_path.iterdir())
    assert not any("measuring" in line for line in told)
