"""`gemcut eval` as from a shell: sweeps, results that were kept, wrong usage."""

import json
from pathlib import Path
from typing import Any

import pytest

from gemcut.api.sweeping import parse_levels
from gemcut.demo.text import held_out_text
from gemcut.errors import UsageError
from tests.shell import refused, run

SHORT = ("-c", "128", "--chunks", "4", "-t", "2", "--routing", "0", "--floor", "0")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text(held_out_text()[:6_000])
    return path


def rows(result) -> dict[str, dict[str, Any]]:
    """What came of each file, by its name."""
    (found,) = json.loads(result.stdout)["comparisons"]
    return {row["column"]["file"]["name"]: row for row in found["rows"]}


@pytest.fixture(scope="module")
def kept(bf16, q4_k_m, q8_0, text, tmp_path_factory) -> tuple[Path, Path]:
    """Two folders of results: of Q4_K_M, and of Q8_0, against BF16."""
    folder = tmp_path_factory.mktemp("results")
    for name, path in (("a", q4_k_m), ("b", q8_0)):
        options = ["--reference", bf16, "--text", text, *SHORT, "-o", folder / name]
        assert run("eval", path, *options).exit_code == 0
    return folder / "a", folder / "b"


def test_a_folder_of_results_has_a_page_a_card_a_sheet_and_a_record(kept):
    names = {path.name for path in kept[0].iterdir()}

    assert {"report.html", "README.md", "report.csv", "report.json", "scores.npz"} <= names


def test_results_are_compared_without_the_models(kept, bf16, q4_k_m, q8_0):
    first, second = (rows(run("eval", "--results", folder, "--json")) for folder in kept)
    both = rows(run("eval", "--results", kept[0], "--results", kept[1], "--json"))

    assert set(both) == {bf16.name, q4_k_m.name, q8_0.name}
    for name, found in (first | second).items():
        if name != bf16.name:
            assert both[name]["summary"]["kld"] == found["summary"]["kld"]


def test_a_sweep_builds_compares_and_leaves_nothing(checkpoint, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    result = run("eval", checkpoint, "--sweep", "q8_0,size=4.5M", "--text", text, *SHORT, "--json")

    found = rows(result)
    assert set(found) == {"BF16.gguf", "Q8_0.gguf", "4.5M.gguf"}
    klds = [found[name]["summary"]["kld"]["value"] for name in ("Q8_0.gguf", "4.5M.gguf")]
    assert klds[0] < klds[1]
    assert found["4.5M.gguf"]["column"]["file"]["size"] <= 4_500_000
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_a_sweep_are_kept_and_used_again(checkpoint, text, tmp_path):
    command = ["eval", checkpoint, "--sweep", "q4_0", "--keep", tmp_path / "k", "--text", text]
    first = run(*command, *SHORT)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "k").glob("*.gguf")}

    second = run(*command, *SHORT)

    assert set(times) == {"BF16.gguf", "Q4_0.gguf"}
    assert times == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "k").glob("*.gguf")}
    assert first.stdout == second.stdout
    assert "there already" in second.stderr


def test_what_was_scored_is_not_scored_again(bf16, q4_k_m, text, monkeypatch):
    options = ["--reference", bf16, "--text", text, *SHORT, "--json"]
    first = run("eval", q4_k_m, *options)

    engine = "gemcut.eval.scoring.scoring"
    monkeypatch.setattr(f"{engine}.run_isolated", lambda *_: pytest.fail("scored again"))
    second = run("eval", q4_k_m, *options)

    assert rows(first)[q4_k_m.name]["summary"] == rows(second)[q4_k_m.name]["summary"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no file to score"),
        (["x.gguf", "--results", "r"], "name no files beside it"),
        (["x.gguf", "--keep", "k"], "--keep is of what a sweep cuts"),
        (["x.gguf", "--imatrix", "i"], "--imatrix is of what a sweep cuts"),
        (["a", "b", "--sweep", "q8_0"], "--sweep cuts one SRC, 2 are named"),
        (["x.gguf", "-ctk", "q8_0,q4_0", "-ctv", "f16,q8_0,q4_0"], "2 types of keys, 3 of values"),
        (["x.gguf", "--sweep", "rate=4"], "wanted a type or mixture, size=14G, bpw=4.5"),
        (["x.gguf", "--kld-base", "b", "--reference", "r"], "its own text and reference"),
    ],
)
def test_wrong_usage_is_refused(arguments, message):
    assert message in refused(run("eval", *arguments), 2)


def test_a_level_with_types_per_expert_wants_importance(checkpoint, text):
    said = refused(run("eval", checkpoint, "--sweep", "per-expert=4M", "--text", text))
    assert "types per expert follow how a text is routed: give --imatrix" in said


def test_results_that_are_none_are_refused(tmp_path):
    assert "report.json" in refused(run("eval", "--results", tmp_path))


def test_a_folder_of_something_else_is_not_written_into(bf16, text, tmp_path):
    (tmp_path / "README.md").write_text("mine")

    message = refused(run("eval", bf16, "--text", text, *SHORT, "-o", tmp_path))

    assert "of no comparison" in message
    assert (tmp_path / "README.md").read_text() == "mine"


def test_levels_of_a_sweep():
    levels = parse_levels("Q8_0, size=14G,bpw=4.25,per-expert=14G")

    assert [level.name for level in levels] == ["Q8_0", "14G", "4.25bpw", "14G-per-expert"]
    assert (levels[1].target.size, levels[2].target.bpw) == (14 * 10**9, 4.25)
    assert [level.per_expert for level in levels] == [False, False, False, True]
    assert levels[3].target == levels[1].target
    with pytest.raises(UsageError, match="twice"):
        parse_levels("q8_0,Q8_0")
    with pytest.raises(UsageError, match="0 levels"):
        parse_levels(" , ")
