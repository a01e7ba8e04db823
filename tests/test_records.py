"""Records of runs: what is kept of them, and how they correct what is predicted."""

import json
import math
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from gemcut.engine import ContextOptions, ModelOptions
from gemcut.gguf_file import GGUFFile
from gemcut.profile import Processor, Profile
from gemcut.runtime.chat.timing import Timing
from gemcut.runtime.placement.given import Given
from gemcut.runtime.placement.placement import Placement, plan_run
from gemcut.runtime.placement.workload import CHAT
from gemcut.runtime.speed import records as module
from gemcut.runtime.speed.forecast import forecast_of
from gemcut.runtime.speed.records import (
    Record,
    Recorder,
    corrected,
    corrections,
    history,
    keep,
    keep_memory,
    kin,
    records,
)
from gemcut.runtime.speed.throughput import Speed

GIB = 1 << 30
MACHINE = Profile(
    "this machine",
    Processor("cpu", "host", 64 * GIB, 0, 10e9, flops=50e9, source="measured"),
    operation=1e-6,
    doubt=0.15,
)


def placement(names=("a", "b"), size=100, profile=MACHINE):
    """A run of a model with tensors of these names."""
    return Placement(
        ModelOptions(),
        ContextOptions(),
        CHAT,
        profile,
        dict.fromkeys(names, "cpu"),
        {"cpu": {"weights: all else": size, "kv": 10, "free": 5}},
        Speed(0.01, 0.001),
        Speed(0.1, 0.01),
        "planned",
    )


def run(of, ratio, depth=0):
    """A run that took so many times what was predicted."""
    return Record(kin(of), depth, (0.01, 0.01 * ratio), (0.1, 0.1 * ratio))


def test_what_is_kept_is_read(tmp_path):
    """In order; memory, too."""
    keep(run(placement(), 2.0, depth=512), tmp_path)
    keep(Record(kin(placement()), decode=(0.1, 0.2)), tmp_path)
    keep_memory(placement(), {"cpu": 120, "gpu0": 7}, tmp_path)
    first, second, third = records(tmp_path)

    assert run(placement(), 2.0, depth=512) == first
    assert second.prefill is None and second.decode == (0.1, 0.2)
    assert {"cpu": (110, 120), "gpu0": (0, 7)} == third.memory


def test_the_same_memory_is_kept_once(tmp_path):
    """However often a run is loaded; other bytes are another record."""
    keep_memory(placement(), {"cpu": 120}, tmp_path)
    written = (tmp_path / "runs.json").stat()
    keep_memory(placement(), {"cpu": 120}, tmp_path)
    again = (tmp_path / "runs.json").stat()
    keep_memory(placement(), {"cpu": 121}, tmp_path)

    assert (written.st_ino, written.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)
    assert [120, 121] == [record.memory["cpu"][1] for record in records(tmp_path)]


def test_no_paths_and_no_prompts_are_kept(tmp_path):
    """Names of tensors, machines and files least of all: digests, and numbers."""
    secret = placement(("../my/secret.weight",), profile=replace(MACHINE, name="my laptop"))
    keep(run(secret, 1.0), tmp_path)
    text = (tmp_path / "runs.json").read_text()

    for private in ("secret", "laptop", str(tmp_path), "/"):
        assert private not in text


def test_without_records_nothing_is_corrected(tmp_path):
    """Neither speed nor doubt."""
    found = corrected(placement(), tmp_path)

    assert found.prefill.seconds == placement().prefill.seconds
    assert found.decode.se == pytest.approx(0.15 * found.decode.seconds)
    assert found.places == placement().places


def test_runs_correct_the_next(tmp_path):
    """The first half of the way on a scale of ratios; several that agree all of it, with less
    doubt than the formula has."""
    keep(run(placement(), 2.0), tmp_path)
    once, _ = corrections(placement(), tmp_path)
    for _ in range(3):
        keep(run(placement(), 2.0), tmp_path)
    often, decode = corrections(placement(), tmp_path)

    assert once.factor == pytest.approx(math.sqrt(2)) and once.runs == 1
    assert often.factor == pytest.approx(2.0) and often.runs == 4
    assert often.doubt < MACHINE.doubt < once.doubt
    assert decode.factor == often.factor
    assert corrected(placement(), tmp_path).decode.seconds == pytest.approx(0.2)


def test_an_outlier_changes_little(tmp_path):
    """A run that was disturbed is outvoted, and seen in the doubt."""
    for ratio in (1.1, 1.1, 50.0, 1.1):
        keep(run(placement(), ratio), tmp_path)
    found, _ = corrections(placement(), tmp_path)

    assert found.factor == pytest.approx(1.1)
    assert found.doubt > 1


def test_the_nearest_runs_count(tmp_path):
    """Of the same file before the same model in other types before any other model."""
    keep(run(placement(("x", "y")), 8.0), tmp_path)
    keep(run(placement(("x", "y")), 8.0), tmp_path)
    any_, _ = corrections(placement(), tmp_path)
    for _ in range(2):
        keep(run(placement(size=50), 4.0), tmp_path)
    of_model, _ = corrections(placement(), tmp_path)
    for _ in range(2):
        keep(run(placement(), 2.0), tmp_path)
    of_file, _ = corrections(placement(), tmp_path)

    assert [8.0, 4.0, 2.0] == [pytest.approx(each.factor) for each in (any_, of_model, of_file)]


def test_runs_at_other_depths_count_where_there_are_none_at_this_one(tmp_path):
    """What attention is off by is more, the deeper a context is."""
    for seconds, ratio in (0.1, 1.0), (0.15, 2.0), (0.15, 2.0), (0.1, 1.0):
        keep(Record(kin(placement()), decode=(seconds, seconds * ratio)), tmp_path)
    known = history(placement(), tmp_path)

    assert known.decode(0.1).factor == pytest.approx(1.0)
    assert known.decode(0.15).factor == pytest.approx(2.0)
    assert known.decode(0.5).runs == 4


def test_a_median_of_repeats_counts_for_them_all(tmp_path):
    """Beside the prediction, which counts for one; no file makes them more than there can be."""
    keep(Record(kin(placement()), decode=(0.1, 0.2), repeats=3), tmp_path)
    found = corrections(placement(), tmp_path)[1]

    assert found.factor == pytest.approx(2.0) and found.runs == 3

    document = json.loads((tmp_path / "runs.json").read_text())
    document["runs"][0]["repeats"] = 10**9
    (tmp_path / "runs.json").write_text(json.dumps(document))
    assert corrections(placement(), tmp_path)[1].runs == 8


def test_a_model_of_another_size_says_nothing(tmp_path):
    """What makes a tiny model slow is not what makes a large one slow; the same model always
    counts."""
    tiny = replace(placement(("x", "y")), decode=Speed(0.02, 0.003), prefill=Speed(0.002, 0.001))
    keep(Record(kin(tiny), 0, (0.002, 0.004), (0.02, 0.04)), tmp_path)
    prefill, decode = corrections(placement(), tmp_path)

    assert (prefill.runs, decode.runs) == (0, 0)
    assert corrections(tiny, tmp_path)[0].runs == 1


def test_other_machines_and_places_do_not_count(tmp_path):
    """Rates that were measured anew are another machine; how much memory is free is not."""
    faster = replace(MACHINE, host=replace(MACHINE.host, bandwidth=20e9))
    busier = replace(MACHINE, host=replace(MACHINE.host, reserve=GIB))
    on_card = replace(placement(), places={"a": "cpu", "b": "gpu0"})
    keep(run(placement(), 2.0), tmp_path)

    assert corrections(placement(profile=faster), tmp_path)[0].runs == 0
    assert corrections(on_card, tmp_path)[0].runs == 0
    assert corrections(placement(profile=busier), tmp_path)[0].runs == 1


def test_what_is_kept_is_bounded(tmp_path, monkeypatch):
    """Of one run the latest few, of all runs so many; memory does not push speeds out."""
    keep(run(placement(), 1.5), tmp_path)
    for number in range(20):
        keep_memory(placement(), {"cpu": number}, tmp_path)
    assert 9 == len(records(tmp_path))
    assert (110, 19) == records(tmp_path)[-1].memory["cpu"]

    monkeypatch.setattr(module, "_MOST", 4)
    for size in range(10):
        keep(run(placement(size=size), 1.5), tmp_path)
    assert 4 == len(records(tmp_path))


DAMAGED = [
    "",
    "{}",
    "[]",
    '{"version": 99, "runs": []}',
    '{"version": 1, "runs": 3}',
    '{"version": 1, "runs": [{}]}',
    '{"version": 1, "runs": ' + 50_000 * "[",
    "\0\0",
]


@pytest.mark.parametrize("text", DAMAGED)
def test_unreadable_files_are_ignored(tmp_path, text):
    """And replaced by the next run."""
    (tmp_path / "runs.json").write_text(text)

    assert [] == records(tmp_path)
    keep(run(placement(), 1.0), tmp_path)
    assert 1 == len(records(tmp_path))


@pytest.mark.parametrize(
    "pair", [[0, 1], [1, -1], [1], ["a", 1], [1, 1e999], [1e299, 1e-299], [1e-299, 1e299], None]
)
def test_nonsense_is_not_believed(tmp_path, pair):
    """Times that are none would spoil every prediction."""
    keep(run(placement(), 1.0), tmp_path)
    path = tmp_path / "runs.json"
    document = json.loads(path.read_text())
    document["runs"][0]["decode"] = pair
    path.write_text(json.dumps(document).replace("Infinity", "1e999"))

    assert corrections(placement(), tmp_path)[1].factor == 1


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    """Nor one that is a file."""
    (tmp_path / "file").write_text("")
    keep(run(placement(), 1.0), tmp_path / "file")

    assert [] == records(tmp_path / "file")
    assert ["file"] == os.listdir(tmp_path)


def _keep_some(folder, number):
    for each in range(5):
        keep(run(placement(size=100 * number + each), 1.0), Path(folder))


def test_processes_do_not_lose_each_others_runs(tmp_path):
    """They wait for each other."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_keep_some, args=(str(tmp_path), n)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)

    assert 10 == len(records(tmp_path))


@pytest.fixture
def forecast(bf16):
    """Of the demo's model."""
    with GGUFFile(bf16) as file:
        return forecast_of(file, plan_run(file, MACHINE, Given(n_ctx=2048, n_ubatch=128)))


def test_an_answer_is_kept(forecast, tmp_path):
    """Beside what was predicted at its depth; what was too short to tell is left out."""
    recorder = Recorder(forecast, tmp_path)
    recorder.take(Timing(256, 512, 2.0, 100, 4.0))
    recorder.take(Timing(0, 20, 2.0, 100, 4.0))
    recorder.take(Timing(0, 20, 2.0, 3, 4.0))
    recorder.take(Timing())
    long, short = records(tmp_path)

    assert long.depth == 256
    assert long.prefill == (forecast.prefill(256, 512).seconds, 2.0 / 512)
    assert long.decode == (forecast.decode(818).seconds, 0.04)
    assert short.prefill is None and short.decode


def test_a_forecast_is_slower_the_more_there_is_to_attend_to(forecast):
    """In both phases; a prompt is the sum of its parts."""
    depths = (1, 512, 1024, 1500)
    decode = [forecast.decode(depth).seconds for depth in depths]
    prefill = [forecast.prefill(depth, 256).seconds for depth in (0, 512, 1024)]
    whole = 512 * forecast.prefill(0, 512).seconds

    assert decode == sorted(decode) and decode[0] < decode[-1]
    assert prefill == sorted(prefill) and prefill[0] < prefill[-1]
    parts = 256 * (forecast.prefill(0, 256).seconds + forecast.prefill(256, 256).seconds)
    assert parts == pytest.approx(whole)
