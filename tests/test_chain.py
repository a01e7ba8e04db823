"""The whole chain: measured once, interrupted anywhere, used again for the next file."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gemcut import api
from gemcut.api import base as base_module
from gemcut.api.base import Base, source_gguf
from gemcut.api.chain import Measurements
from gemcut.convert.model import Model
from gemcut.demo.text import held_out_text
from gemcut.errors import OutputError, TextError, UsageError
from gemcut.gguf_file import GGUFFile
from gemcut.plan import METADATA_KEY, Measured, Plan
from gemcut.quantize import probe as probe_module
from gemcut.quantize.artefacts import Artefacts
from gemcut.quantize.division import Rate, divided, expected, probe_chunks
from gemcut.quantize.identity import sensitivity_digest
from gemcut.quantize.subject import Sampling
from gemcut.runtime.machine.inspection import inspect_machine
from gemcut.sensitivity import Sensitivity

MEASURED = Measured(0.02, 0.001, 0.01, "t", 8, "q8_0")
KEPT = {"imatrix.gguf", "keys.json", "sensitivity.json"}


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Model:
    return api.open_source(checkpoint)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of which the probe gets two chunks."""
    path: Path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(held_out_text()[:4000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def effort(text: Path) -> api.Effort:
    return api.Effort([text], threads=1, n_ctx=64)


class Interrupted(Exception):
    """Stands for a signal."""


@pytest.fixture(scope="module")
def chain(model: Model, effort: api.Effort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of measurements that were interrupted in every step, and what was told."""
    folder: Path = tmp_path_factory.mktemp("chain") / "m.gguf.gemcut"
    told: list[str] = []
    seen: list[str] = []
    for stage, share in (("q8_0.gguf", 0.4), ("imatrix.gguf", 0.1), ("sensitivity.json", 0.5)):

        def stop(what: str, done: int, total: int, at: str = stage, part: float = share) -> None:
            seen.append(what)
            if what == at and done >= part * total:
                raise Interrupted

        with pytest.raises(Interrupted):
            api.measure_chain(model, folder, effort, progress=stop, tell=told.append)
    seen.clear()
    api.measure_chain(
        model, folder, effort, progress=lambda what, *_: seen.append(what), tell=told.append
    )
    assert {"sensitivity.json"} == set(seen)
    (folder / "told").write_text("\n".join(told))
    return folder


@pytest.fixture
def folder(chain: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, beside a result to be."""
    copy = tmp_path / "m.gguf.gemcut"
    shutil.copytree(chain, copy)
    (copy / "told").unlink()
    yield copy


def planner(found: Measurements) -> Plan:
    """Some plan that says which sensitivity it rests on."""
    model_plan = Plan.read(found.folder.parent / "some.json")
    return replace(model_plan, sources={"sensitivity": sensitivity_digest(found.sensitivity)})


@pytest.fixture
def planned(model: Model, tmp_path: Path) -> Path:
    """A plan for `planner`."""
    path = tmp_path / "some.json"
    api.make_plan(model, api.Target("q4_0")).write(path)
    return path


def test_an_interrupted_chain_goes_on_in_every_step(chain):
    """And says so; what is finished is used."""
    told = (chain / "told").read_text()

    for words in (
        "measuring: importance, then errors of tensors",
        "q8_0.gguf: 8.21 MB for measuring",
        "is kept: the same command continues",
        "continuing behind chunk 8 of ",
        "imatrix.gguf: is used as it is there",
        "sensitivity.json: what was measured is kept",
        "sensitivity.json: continuing with what was measured before",
        "probing 53 of 53 groups over 2 chunks of 64 tokens",
    ):
        assert words in told, words
    found = Sensitivity.read(chain / "sensitivity.json")
    assert {"probe"} == {group.source for group in found.groups.values()}
    assert KEPT | {"q8_0.gguf", "told"} == {path.name for path in chain.iterdir()}


def test_the_next_file_starts_from_what_is_there(model, effort, folder, planned, tmp_path):
    """Nothing is measured again, the temporary file goes, and what files lost is remembered."""
    output, seen = tmp_path / "m.gguf", set()
    assert folder == api.chain_folder(output)

    def run(**options) -> Plan:
        cut = api.quantize_measured(
            model, output, planner, effort, progress=lambda what, *_: seen.add(what), **options
        )
        assert cut.files == {output: output.stat().st_size}
        return cut.plan

    first = run(keep=True)
    assert (folder / "q8_0.gguf").exists()
    api.record(MEASURED, [folder / "plan.json", tmp_path / "none.json"])
    second = run()

    assert {"m.gguf"} == seen
    assert first == second == replace(Plan.read(folder / "plan.json"), measured=())
    assert (MEASURED,) == Plan.read(folder / "plan.json").measured
    with GGUFFile(output) as file:
        assert "measured" not in file.get(METADATA_KEY)
        assert file.get("quantize.imatrix.digest")
    assert KEPT | {"plan.json"} == {path.name for path in folder.iterdir()}


def test_what_another_sensitivity_predicted_is_not_compared(model, effort, folder, planned):
    plan = replace(Plan.read(planned), sources={"sensitivity": "x"}, measured=(MEASURED,))
    plan.write(folder / "plan.json")
    assert () == api.measure_chain(model, folder, effort).measured

    (folder / "plan.json").write_text("{}")
    assert () == api.measure_chain(model, folder, effort).measured


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_ctx": 32}, r"imatrix.gguf: it is of another context \(64, now 32\)"),
        ({"texts": ()}, "imatrix.gguf: it is of another text"),
    ],
)
def test_other_measurements_are_made_anew(model, effort, folder, change, words):
    """And it is said why; the file that is measured on can stay."""
    told: list[str] = []

    def stop(what: str, done: int, total: int) -> None:
        told.append(what)
        raise Interrupted

    with pytest.raises(Interrupted):
        api.measure_chain(model, folder, replace(effort, **change), progress=stop, tell=told.append)
    assert any(line.startswith(words.replace("\\", "")) for line in told)
    assert any("imatrix.gguf" == line for line in told)


def test_a_damaged_artefact_is_made_anew(model, effort, folder):
    artefacts = Artefacts(folder)
    key = {"version": "x"}
    artefacts.keep("imatrix.gguf", key, 5, seconds_per_chunk=0.5)

    assert Artefacts(folder).outdated("imatrix.gguf", key) is None
    assert Artefacts(folder).outdated("imatrix.gguf", key, 5) is None
    assert 0.5 == Artefacts(folder).facts("imatrix.gguf")["seconds_per_chunk"]
    assert "made in 5 minutes, and 6 are given" in str(artefacts.outdated("imatrix.gguf", key, 6))
    with open(folder / "imatrix.gguf", "ab") as file:
        file.write(b"x")
    assert "it is not as it was left" == artefacts.outdated("imatrix.gguf", key)
    assert "it is not there" == artefacts.outdated("plan.json", key)
    (folder / "keys.json").write_text('{"imatrix.gguf": 3}')
    assert "nobody knows" in str(Artefacts(folder).outdated("imatrix.gguf", key))


def test_unfinished_work_of_something_else_is_an_error(model, effort, folder, text, tmp_path):
    """Of another text, say; --restart throws it away."""

    def stop(what: str, done: int, total: int) -> None:
        raise Interrupted

    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[::-1], encoding="utf-8")
    (folder / "imatrix.gguf").unlink()
    with pytest.raises(Interrupted):
        api.measure_chain(model, folder, effort, progress=stop)
    with pytest.raises(
        OutputError, match="unfinished work of another .*text lies there.*--restart"
    ):
        api.measure_chain(model, folder, replace(effort, texts=[other]), progress=stop)
    with pytest.raises(Interrupted):
        api.measure_chain(model, folder, replace(effort, texts=[other]), True, progress=stop)


def test_too_little_memory_means_priors(model, effort, tmp_path, monkeypatch):
    """Said plainly; importance is collected all the same, and errors are measured."""
    small = replace(inspect_machine(), ram_available=10_000_000, devices=())
    monkeypatch.setattr(probe_module, "inspect_machine", lambda: small)
    told: list[str] = []

    found = api.measure_chain(model, tmp_path / "f", effort, tell=told.append)

    assert any("stays a prior: probing takes 0.3 GB of memory" in line for line in told)
    assert {"prior"} == {group.source for group in found.sensitivity.groups.values()}
    assert "blk.0.ffn_down_exps.weight" in found.importance
    assert found.imatrix.exists()


def test_too_little_time_to_probe_means_priors(model, effort, folder, monkeypatch):
    """Also if it turns out late; the errors that are measured stay."""
    (folder / "sensitivity.json").unlink()

    def slow(*arguments, **options):
        monkeypatch.setattr("gemcut.quantize.tensor_errors.local_errors", None)  # not called again
        raise UsageError("probing takes 9 minutes at least")

    monkeypatch.setattr("gemcut.quantize.measure.probe_sensitivity", slow)
    told: list[str] = []

    found = api.measure_chain(model, folder, effort, tell=told.append)

    assert "probing takes 9 minutes at least; what errors cost stays a prior" in told
    assert {"prior"} == {group.source for group in found.sensitivity.groups.values()}


def test_a_gguf_is_measured_on_itself(bf16, q4_k_m, checkpoint, effort, tmp_path):
    """If it is fine enough, and fits; nothing temporary is made of it."""
    artefacts = Artefacts(tmp_path / "f")
    coarse = api.open_source(q4_k_m, requantize=True)

    assert bf16 == Base(api.open_source(bf16), artefacts).path
    assert artefacts.path("q8_0.gguf") == Base(coarse, artefacts).path
    assert Base(coarse, artefacts).refusal is None
    assert not Base(coarse, artefacts).is_there
    assert source_gguf(api.open_source(checkpoint)) is None


def test_too_little_of_anything_is_found_out_first(model, effort, text, tmp_path, monkeypatch):
    """Minutes, text, the disk: before anything is measured, and nothing is left."""
    short = tmp_path / "short.txt"
    short.write_text(text.read_text()[:700], encoding="utf-8")
    folder = tmp_path / "f"

    with pytest.raises(UsageError, match="measuring takes at least .* minutes here"):
        api.measure_chain(model, folder, replace(effort, minutes=1e-6))
    with pytest.raises(OutputError, match="takes 8.21 MB of the disk and 10.00 EB|1000.* for the"):
        api.measure_chain(model, folder, replace(effort, room=10**19))
    assert [] == list(folder.iterdir())
    with pytest.raises(TextError, match="too short.*an eighth of each text is for the probe"):
        api.measure_chain(model, folder, replace(effort, texts=[short]))
    monkeypatch.setattr(base_module, "check_memory", lambda *_: None)
    for output in (tmp_path / "none" / "m.gguf", text):
        with pytest.raises(OutputError):
            api.quantize_measured(model, output, planner, effort)


def test_minutes_are_divided(model):
    """A quarter to importance, what it leaves to the others; no probe in no time."""
    share = divided(40)

    assert (10, 30) == (share.importance, share.rest)
    assert 36 == share.left(4) and 30 == share.left(100)
    assert 16 == probe_chunks(model, 1e9, None) == probe_chunks(model, 0.0, 1)
    assert 8 == probe_chunks(model, 4.0, 10)
    assert probe_chunks(model, 60.0, 10) is None
    whole = expected(model, Sampling(), 1, None)
    assert 0 < whole.least < whole.most
    assert expected(model, Sampling(), 1, whole.most / 120).most <= whole.most / 3


def test_a_rate_is_that_of_what_was_done(monkeypatch):
    """Not of what went before, nor of what an earlier run did."""
    now = [100.0]
    monkeypatch.setattr("gemcut.quantize.division.monotonic", lambda: now[0])
    rate, seen = Rate(lambda *done: seen.append(done)), []
    for seconds, done in ((5, 21), (6, 22), (9, 25)):
        now[0] = 100 + seconds
        rate(done, 30)

    assert 1 == rate.each
    assert 9 == rate.seconds
    assert [(21, 30), (22, 30), (25, 30)] == seen
    assert 0 == Rate(lambda *_: None).each
