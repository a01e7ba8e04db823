"""The command line: results on stdout, talk on stderr, one line and an exit code for an error."""

import json
from pathlib import Path

import pytest

from gemcut.cli import COMMANDS
from tests.shell import refused, run


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str):
    """`gemcut COMMAND --help` works for every command that `gemcut --help` lists."""
    result = run(command, "--help")

    assert result.exit_code == 0
    assert command in run("--help").stdout


def test_convert_writes_a_file_and_says_so(checkpoint: Path, tmp_path: Path):
    """The result goes to stdout as JSON, and its size is that of the file."""
    output = tmp_path / "model.gguf"

    result = run("convert", checkpoint, "-o", output, "--type", "F16", "--json")

    assert result.exit_code == 0
    assert output.stat().st_size == json.loads(result.stdout)["size"]


def test_a_dry_run_writes_nothing_and_knows_the_size(checkpoint: Path, tmp_path: Path):
    """What --dry-run announces is what the real run makes."""
    output = tmp_path / "model.gguf"
    arguments = ["quantize", checkpoint, "-o", output, "--size", "5M", "--json"]

    announced = json.loads(run(*arguments, "--dry-run").stdout)

    assert list(tmp_path.iterdir()) == []
    assert announced == json.loads(run(*arguments).stdout)
    assert announced["size"] == output.stat().st_size <= 5_000_000


def test_a_saved_plan_makes_the_same_file(checkpoint: Path, tmp_path: Path):
    """quantize --plan with a plan that was saved before gives the same bytes."""
    first, second, plan = tmp_path / "a.gguf", tmp_path / "b.gguf", tmp_path / "plan.json"

    run("quantize", checkpoint, "-o", first, "--bpw", "4.5", "--save-plan", plan)
    result = run("quantize", checkpoint, "-o", second, "--plan", plan)

    assert result.exit_code == 0
    assert first.read_bytes() == second.read_bytes()


def test_replaced_types_are_listed(checkpoint: Path, tmp_path: Path):
    """A stock mixture whose types do not fit a row says which tensors got what."""
    result = run("quantize", checkpoint, "-o", tmp_path / "m.gguf", "--type", "Q4_K_M")

    assert "q4_k does not fit" in result.stderr
    assert "blk.0.ffn_down_exps.weight" in result.stderr


def test_a_bare_type_that_does_not_fit_is_an_error(checkpoint: Path, tmp_path: Path):
    """Nothing is replaced unless --fallback allows it."""
    arguments = ["quantize", checkpoint, "-o", tmp_path / "m.gguf", "--type", "q4_k"]

    assert "--fallback would take q5_0" in refused(run(*arguments))
    assert run(*arguments, "--fallback", "--dry-run").exit_code == 0


def test_exactly_one_target_is_wanted(checkpoint: Path, tmp_path: Path):
    """Two targets, or none, are wrong usage."""
    arguments = ["quantize", checkpoint, "-o", tmp_path / "m.gguf"]

    refused(run(*arguments), 2)
    refused(run(*arguments, "--type", "Q4_0", "--size", "5M"), 2)
    assert "not a size" in refused(run(*arguments, "--size", "big"), 2)


def test_a_budget_that_is_too_small_names_the_smallest_file(checkpoint: Path, tmp_path: Path):
    """The error tells what would do, and nothing is left behind."""
    output = tmp_path / "m.gguf"

    line = refused(run("quantize", checkpoint, "-o", output, "--size", "1M"))

    assert "a file of " in line and "bytes would do" in line
    assert list(tmp_path.iterdir()) == []


def test_errors_are_one_line(tmp_path: Path):
    """A missing source, file or text: one line that names it, exit code 1."""
    missing = tmp_path / "nothing"
    for command in (
        ["convert", missing, "-o", tmp_path / "m.gguf"],
        ["inspect", missing],
        ["run", missing, "-p", "hello"],
        ["eval", missing, "--text", missing],
    ):
        line = refused(run(*command))
        assert str(missing) in line
        assert line.count("\n") == 1


def test_inspect_counts_the_same_weights_on_both_sides(checkpoint: Path, q4_k_m: Path):
    """A checkpoint and a file cut from it have the same roles and weights, but not the sizes."""
    source = json.loads(run("inspect", checkpoint, "--json").stdout)
    cut = json.loads(run("inspect", q4_k_m, "--json").stdout)

    assert cut["weights"] == source["weights"]
    assert {part["role"] for part in cut["parts"]} == {part["role"] for part in source["parts"]}
    assert cut["size"] < source["size"]
    assert cut["plan"]["request"] == {"type": "q4_k_m"}


def test_eval_compares_files(bf16: Path, q4_k_m: Path, tmp_path: Path):
    """The reference comes first and the cut file lost something against it."""
    text = tmp_path / "text.txt"
    text.write_text("def add(a, b):\n    return a + b\n" * 200)

    options = ["--reference", bf16, "--text", text, "-c", "128", "--chunks", "2", "-t", "1"]
    result = run("eval", q4_k_m, *options, "--json")

    (found,) = json.loads(result.stdout)["comparisons"]
    roles = [(row["column"]["role"], row["column"]["file"]["name"]) for row in found["rows"]]
    assert roles == [
        ("reference", bf16.name),
        ("floor", bf16.name),
        ("candidate", q4_k_m.name),
    ]


def test_doctor_names_backends_and_versions():
    """doctor says what is in, as text and as JSON."""
    found = json.loads(run("doctor", "--json").stdout)

    assert "CPU" in found["backends"]
    assert "llama-cpp-python" in run("doctor").stdout


def test_nothing_that_is_read_is_written(checkpoint: Path, q8_0: Path, tmp_path: Path):
    """Neither a model, a text, a plan nor an imatrix; nor is a missing folder found out late."""
    text, plan = tmp_path / "text.txt", tmp_path / "plan.json"
    text.write_text("def add(a, b):\n    return a + b\n" * 200)
    plan.write_text("{}")
    read = ["imatrix", q8_0, "--text", text, "-o"]
    measured = ["measure", checkpoint, "--probe", q8_0, "--text", text, "-o"]
    cut = ["quantize", checkpoint, "--imatrix", text, "--plan", plan, "-o"]
    other, before = tmp_path / "other", q8_0.stat()
    for command in (
        [*read, text],
        [*read, other, "--plot", q8_0],
        [*read, other, "--plot", text],
        [*read, other, "--plot", other],
        ["imatrix", "--merge", q8_0, "-o", q8_0],
        [*measured, text],
        [*measured, q8_0],
        [*cut, text],
        [*cut, plan],
        [*cut, other, "--save-plan", text],
        [*cut, other, "--save-plan", other],
    ):
        assert "wanted another file's name" in refused(run(*command))
    for command in (read, measured, cut):
        assert "make the folder" in refused(run(*command, tmp_path / "none" / "file"))
    assert {"text.txt", "plan.json"} == {path.name for path in tmp_path.iterdir()}
    assert (before.st_size, before.st_mtime_ns) == (q8_0.stat().st_size, q8_0.stat().st_mtime_ns)


def test_a_context_without_tokens_is_refused(q8_0: Path, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("def add(a, b):\n    return a + b\n" * 200)

    result = run("imatrix", q8_0, "-o", tmp_path / "i", "--text", text, "-c", "0")

    assert "a context of 0 tokens" in refused(result, 2)
