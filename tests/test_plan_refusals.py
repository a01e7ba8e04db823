"""What cannot be planned is refused in one line, before any work: `gemcut plan`, `quantize`."""

from pathlib import Path

import pytest

from tests.shell import refused, run

WRONG = [
    (["--vram", "12GG"], 2, "vram: '12GG' is not a size"),
    (["--vram", "0"], 2, "vram is 0"),
    (["--vram", "-1G"], 2, "'-1G' is not a size"),
    (["--vram", "100M"], 2, "100.00 MB of VRAM"),
    (["--ram", "-1"], 2, "'-1' is not a size"),
    (["--ram", "0", "--machine", "ddr5-5600"], 2, "there is none: give --vram"),
    (["-c", "0"], 2, "context is 0"),
    (["--parallel", "0"], 2, "parallel is 0"),
    (["-ub", "0"], 2, "ubatch is 0"),
    (["--kv", "q3_k"], 2, "kv is 'q3_k'"),
    (["--size", "0"], 2, "size is 0"),
    (["--size", "5M", "--bpw", "4"], 2, "give one"),
    (["--bpw", "0"], 2, "bpw is 0.0: wanted more than 0"),
    (["--min-speed", "-1"], 2, "min-speed is -1.0"),
    (["--max-kld", "0"], 2, "max-kld is 0.0"),
    (["--prefer", "size"], 2, "wanted speed, balance, quality"),
    (["--types", "q9_k"], 1, "unknown type 'q9_k'"),
    (["--types", "tq1_0"], 1, "none of the types asked for fits it"),
    (["--rule", "blk.0.attn_q.weight"], 2, "wanted PATTERN=TYPE"),
    (["--rule", "attn_q=q6_k"], 1, "no tensor has such a name"),
    (["--rule", "blk.*=q8_0", "--rule", "blk.0.attn_q.*=q4_0"], 1, "contradict each other"),
    (["--rule", "blk.*=gpu3"], 1, "this machine has cpu, gpu0"),
    (["--floor", "experts"], 2, "wanted ROLE=TYPE"),
    (["--floor", "expert=q4_k"], 2, "no such role"),
    (["--machine", "rtx-9999"], 2, "'rtx-9999' is not known"),
    (["--machine", "missing.json"], 1, "missing.json"),
    (["--intent", "missing.toml"], 2, "missing.toml: cannot be read"),
    (["--sensitivity", "missing.json"], 1, "missing.json: cannot be read"),
    (["--imatrix", "missing.gguf"], 1, "missing.gguf"),
    (["--validated", "missing.json"], 1, "missing.json: cannot be read"),
    (["--size", "1M"], 1, "nothing fits: "),
    (["--vram", "1G", "--ram", "5G"], 1, "nothing fits: "),
    (["--min-speed", "100000"], 1, "tokens per second would do"),
]


@pytest.mark.parametrize(("options", "code", "words"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
@pytest.mark.parametrize("command", ["plan", "quantize"])
def test_what_cannot_be_planned_is_refused(
    checkpoint: Path, tmp_path: Path, command: str, options: list[str], code: int, words: str
):
    """One line that says what would do, and nothing is written."""
    output = tmp_path / "out"
    machine = [] if "--machine" in options else ["--machine", "rtx-4070"]
    context = [] if "-c" in options else ["-c", "1k"]

    line = refused(run(command, checkpoint, "-o", output, *machine, *context, *options), code)

    assert words in line
    assert len([each for each in line.splitlines() if each.startswith("Error: ")]) == 1
    assert list(tmp_path.iterdir()) == []


TOGETHER = [
    (["--type", "Q4_0", "--vram", "12G"], "exactly one of"),
    (["--plan", "p.json", "--size", "5M"], "exactly one of"),
    (["--type", "Q4_0", "--measure"], "exactly one of"),
    ([], "exactly one of"),
    (["--size", "5M", "--pure"], "go with --type"),
    (["--size", "5M", "--minutes", "5"], "--minutes goes with --measure"),
    (["--size", "5M", "--text", "t.txt"], "--text is for --measure and --validate"),
    (["--size", "5M", "--measure", "--dry-run"], "without --dry-run"),
    (["--size", "5M", "--validate", "--dry-run"], "without --dry-run"),
    (["--size", "5M", "--measure", "--frugal"], "without --frugal"),
    (["--size", "5M", "--measure", "--imatrix", "i.gguf"], "without --imatrix"),
    (["--size", "5M", "--measure", "--sensitivity", "s.json"], "without --imatrix and"),
]


@pytest.mark.parametrize(("options", "words"), TOGETHER, ids=[" ".join(w[0]) for w in TOGETHER])
def test_options_that_do_not_go_together_are_wrong_usage(
    checkpoint: Path, tmp_path: Path, options: list[str], words: str
):
    """Before any work is done."""
    assert words in refused(run("quantize", checkpoint, "-o", tmp_path / "m.gguf", *options), 2)


def test_what_cannot_fit_is_said_before_anything_is_measured(checkpoint: Path, tmp_path: Path):
    """Measuring takes hours; a budget or a rule is checked in seconds."""
    arguments = ["quantize", checkpoint, "-o", tmp_path / "m.gguf", "--measure"]

    assert "nothing fits" in refused(run(*arguments, "--size", "1M"))
    assert "no tensor has such a name" in refused(run(*arguments, "--bpw", "5", "--rule", "x=q8_0"))
    assert list(tmp_path.iterdir()) == []
