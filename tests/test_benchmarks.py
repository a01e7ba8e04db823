"""docs/benchmarks.md says what bench/results holds, and the README quotes nothing else."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = sorted((ROOT / "bench" / "results").glob("*.json"))
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
KEYS = {"name", "claim", "command", "date", "machine", "versions", "tables", "notes"}
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e-\d+)?")


@pytest.fixture
def render(monkeypatch):
    """The script that makes the page."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import render

    return render


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_how_it_was_made(path):
    """One claim, a command that names a script, machine and versions, tables with full rows."""
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result.keys() == KEYS
    assert result["name"] == path.stem
    assert result["claim"].endswith(".")
    script = re.search(r"python (bench/\w+\.py)", result["command"])
    assert script and (ROOT / script[1]).is_file()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])
    assert result["machine"].keys() == {"cpu", "cores", "ram_bytes", "os", "gpu"}
    assert result["versions"].keys() >= {"gemcut", "llama_cpp_python", "gguf", "python", "peer"}
    assert result["tables"]
    for table in result["tables"]:
        assert table["rows"]
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}


def test_no_result_tells_of_folders_of_the_machine():
    for path in RESULTS:
        assert not re.search(r"[\"' ](/[\w.-]+){2}", path.read_text(encoding="utf-8")), path.name


def test_the_page_is_what_the_results_render_to(render):
    assert render.page(render.read(render.RESULTS)) == PAGE, (
        "run PYTHONPATH=. python bench/render.py"
    )


def test_the_picture_is_small():
    assert 0 < (ROOT / "docs" / "pictures" / "size-kld.svg").stat().st_size < 60_000


def test_the_readme_quotes_the_page():
    """Every number in a table under a heading that begins "Measured" stands in the page."""
    known = set(NUMBER.findall(PAGE))
    for heading, body in re.findall(r"^##+ (Measured.*)\n((?:(?!##).*\n?)*)", README, re.M):
        rows = [line for line in body.splitlines() if line.startswith("|")]
        unknown = {number for row in rows for number in NUMBER.findall(row)} - known
        assert not unknown, f"{heading}: {sorted(unknown)} not in docs/benchmarks.md"


def test_a_record_is_written_only_when_asked(render, monkeypatch, tmp_path):
    import common

    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["bench/quantize.py", "/some/where/model", "--show"])
    rows = [["words", 12345, 0.123456789, [0.5, 0.25, 0.75], None]]
    table = common.Table("Title", ["a", "b", "c", "d", "e"], rows)
    monkeypatch.delenv("RECORD", raising=False)
    common.record("name", "It is so.", [table])
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("RECORD", "1")
    common.record("name", "It is so.", [table], ["a note"], when=0.0)
    (result,) = render.read(tmp_path)
    assert result.keys() == KEYS
    assert result["command"] == "PYTHONPATH=. python bench/quantize.py model"
    assert "| words | 12,345 | 0.1235 | 0.50 (0.25-0.75) |  |" in render.page([result])
