"""`gemcut eval` under attack: files that abort llama.cpp, odd names, results not to be trusted."""

import io
import json
import os
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from gemcut.demo.text import held_out_text
from gemcut.errors import EngineError, TextError
from gemcut.eval.report.page import page
from gemcut.eval.report.record import read
from gemcut.eval.scoring.kld_file import KldFile, writing
from gemcut.eval.scoring.worker import apart
from gemcut.eval.texts.text import read_bytes
from tests.shell import refused, run
from tests.test_eval_cli import rows

SHORT = ("-c", "64", "--chunks", "2", "-t", "1", "--routing", "0", "--floor", "0")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text(held_out_text()[:2_000])
    return path


@pytest.fixture(scope="module")
def deadly(q4_k_m, tmp_path_factory) -> Path:
    """A file that llama.cpp ends the process for: its keys are wider than its values."""
    path = tmp_path_factory.mktemp("deadly") / "deadly.gguf"
    shutil.copy(q4_k_m, path)
    field = GGUFReader(path, "r+").fields["gemma4.attention.value_length"]
    field.parts[field.data[0]][0] = 16
    return path


@pytest.fixture(scope="module")
def kept(q4_k_m, q8_0, text, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "kept"
    command = ["eval", q4_k_m, "--reference", q8_0, "--text", text, *SHORT, "-o", folder]
    assert run(*command).exit_code == 0
    return folder


def test_the_first_file_may_abort_without_the_others_being_lost(deadly, q4_k_m, text):
    result = run("eval", deadly, q4_k_m, "--text", text, *SHORT, "--json")

    found = rows(result)
    assert result.exit_code == 1 and "not scored: deadly.gguf" in result.stderr
    assert "crashed while it was loaded (SIGABRT" in found["deadly.gguf"]["failure"]
    assert found[q4_k_m.name]["summary"]["bits_per_byte"]["value"] > 0


@pytest.mark.parametrize("framing", ["raw", "own"])
def test_a_reference_that_aborts_is_an_error(deadly, q4_k_m, text, framing):
    texts = ["--text", text] if framing == "raw" else []

    result = run("eval", q4_k_m, "--reference", deadly, *texts, "--framing", framing, *SHORT)

    assert "deadly.gguf: llama.cpp crashed" in refused(result)


def test_another_process_answers_tells_and_dies_alone():
    done = []

    with pytest.raises(EngineError, match=r"x: llama.cpp crashed \(code 3\)"):
        apart("x", os._exit, 3)
    with pytest.raises(TextError, match="nowhere"):
        apart("x", read_bytes, Path("nowhere"))
    assert apart("x", _counted, 2, progress=lambda *step: done.append(step)) == 4
    assert done == [(1, 2), (2, 2)]


def _counted(number, progress):
    for each in range(number):
        progress(each + 1, number)
    return 2 * number


def test_what_would_fail_at_the_end_is_refused_at_once(q4_k_m, text, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "gemcut.api.comparing.compare_selected", lambda *_: pytest.fail("hours were spent")
    )
    (tmp_path / "file").touch()
    command = ["eval", q4_k_m, "--text", text, *SHORT]

    assert "cannot read this task" in refused(run(*command, "--task", tmp_path / "none"))
    for target in (tmp_path, tmp_path / "none" / "a.kld"):
        assert "wanted the name of a file" in refused(run(*command, "--save-kld", target))
    own = ["eval", q4_k_m, "--framing", "own", "--save-kld", tmp_path / "a.kld"]
    assert "use --framing raw or bos" in refused(run(*own))
    assert "is a file, wanted a folder" in refused(run(*command, "-o", tmp_path / "file" / "x"))


def test_links_that_lead_round_are_refused(q4_k_m, tmp_path):
    loop = tmp_path / "loop.gguf"
    loop.symlink_to(loop)

    said = refused(run("eval", q4_k_m, loop))
    # Since Python 3.13 a path that leads round is resolved, and not read.
    assert "loop.gguf: cannot be found" in said or "loop.gguf: cannot be read" in said


def test_names_of_all_kinds_are_shown(kept):
    (comparison,) = (report := read(kept)).comparisons
    for name in (r"<script>\s</script>.gguf", "$(x) `y` 日本.gguf"):
        columns = [row.column for row in comparison.rows]
        named = [replace(c, file=replace(c.file, name=f"{i}{name}")) for i, c in enumerate(columns)]
        changed = [replace(row, column=c) for row, c in zip(comparison.rows, named, strict=True)]
        files = tuple(replace(each, name=f"{i}{name}") for i, each in enumerate(report.files))
        compared = (replace(comparison, rows=tuple(changed)),)
        html = page(replace(report, comparisons=compared, files=files))

        assert r"<script>\s" not in html


def test_a_name_that_is_not_utf8_is_reported_all_the_same(q4_k_m, text, tmp_path):
    path = tmp_path / os.fsdecode(b"bad\xff.gguf")
    path.symlink_to(q4_k_m)

    linked = run("eval", path, "--text", text, *SHORT, "--json")
    shutil.copy(q4_k_m, copy := tmp_path / os.fsdecode(b"copy\xff.gguf"))
    copied = run("eval", copy, "--text", text, *SHORT, "-o", tmp_path / "out")

    assert (linked.exit_code, copied.exit_code) == (0, 0)
    assert "copy\N{REPLACEMENT CHARACTER}" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("member", "change", "message"),
    [
        ("0.1.nll", lambda a: a * np.float32("nan"), "numbers that are not finite"),
        ("0.1.kld", lambda a: a + np.float32("inf"), "numbers that are not finite"),
        ("0.sizes", lambda a: 0 * a, "tokens of no bytes"),
        ("0.texts", lambda a: a + 1, "texts that are not there"),
        ("0.texts", lambda a: a - 1, "texts that are not there"),
        ("0.1.nll", lambda a: np.array([print] * len(a), object), "an array of another format"),
    ],
)
def test_scores_that_make_no_sense_are_refused(kept, tmp_path, member, change, message):
    folder = tmp_path / "changed"
    shutil.copytree(kept, folder)
    with np.load(kept / "scores.npz") as arrays:
        changed = dict(arrays) | {member: change(arrays[member])}
    np.savez_compressed(buffer := io.BytesIO(), **changed)
    (folder / "scores.npz").write_bytes(buffer.getvalue())
    document = json.loads((kept / "report.json").read_text())
    document["scores_sha256"] = sha256(buffer.getvalue()).hexdigest()
    (folder / "report.json").write_text(json.dumps(document))

    assert message in refused(run("eval", "--results", folder, "--results", kept))


def test_scores_without_an_end_are_not_read(kept, tmp_path):
    folder = tmp_path / "endless"
    shutil.copytree(kept, folder)
    (folder / "scores.npz").unlink()
    (folder / "scores.npz").symlink_to("/dev/zero")

    assert "is no file" in refused(run("eval", "--results", folder))


def test_a_base_of_which_a_part_reads_zero_is_damaged(tmp_path):
    path = tmp_path / "a.kld"
    rows = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    with writing(path, np.zeros((2, 8), np.int32), 16) as writer:
        for each in rows:
            writer.add(each)
    data = path.read_bytes()
    path.write_bytes(data[:-100] + bytes(100))

    base = KldFile.read(path)
    assert base.log_probabilities(0).shape == (3, 16)
    with pytest.raises(TextError, match="chunk 2 is damaged"):
        base.log_probabilities(1)
