"""Every command that stands in the documentation is run on the demo's model.

In one folder, in which files have the names that the documentation gives them. What takes long on
a real model is given less to do (`LESS`). What cannot be run here is listed with the reason
(`NOT_RUN`), and its options are parsed all the same.
"""

import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gemcut import api
from gemcut.cli import main
from gemcut.demo.text import held_out_text
from gemcut.eval.report import plots
from gemcut.profile import Kernels
from gemcut.quantize import frontier
from gemcut.runtime.machine import profiles
from gemcut.runtime.machine.bandwidth import Rates
from tests.documents import PAGES, ROOT, blocks, commands

# The first that matches a whole command counts.
NOT_RUN: Mapping[str, str] = {
    r"gemcut (serve|rpc-server)\b.*": "it stays up: tests/test_server.py, tests/test_rpc_server.py",
    r".* --rpc \S+": "another machine: tests/test_placed.py",
    r"gemcut \S+ (owner|google|openai)/.*": "a Hub id: tests/test_hub.py, tests/test_hub_gguf.py",
    r"gemcut quantize .*--measure\b.*": "the whole chain: tests/test_chain.py",
    r"gemcut doctor --measure\b.*": "it measures for seconds: tests/test_bandwidth.py",
    r"gemcut build-experts": "it compiles: tests/test_experts.py",
    r"gemcut (run|convert) experts.gguf.*": "types per expert: tests/test_quantize_experts.py",
    r"gemcut bench .*16k": "prompts of 16,000 tokens: tests/test_bench.py",
    r"gemcut eval .*--results earlier": "results of last week: tests/test_join.py",
    r"gemcut .*--framing own\b.*": "the model writes for long: tests/test_framing.py",
    r"(CMAKE_ARGS=.* )?pip install .*": "it installs",
    r"make .*": "it builds",
    r"python bench/families/record.py .*": "torch and llama.cpp's sources",
    r"(export|lm-eval|URL=).*": "lm-eval is not installed where the tests run",
}
# What is added to a command, unless it says so itself: a few chunks, rows and tokens show as well
# as many that it works.
LESS: Mapping[str, Sequence[str]] = {
    "eval": ("-c=128", "--chunks=2", "--floor=1", "--routing=1", "--speed-context=64", "-t=1"),
    "imatrix": ("-c=128", "--chunks=2", "-t=1"),
    "measure": ("--types=q4_0,q4_k,q5_0,q6_k,q8_0", "--rows=2", "-c=64", "--chunks=2", "-t=1"),
    "run": ("-n=100", "-t=1"),  # room for an answer that its schema bounds
    "bench": ("-p=32", "-n=2", "-r=1", "-t=1"),
    "plan": ("-t=1",),
    "quantize": ("-t=1",),
    "convert": ("-t=1",),
}
FILES = {"bf16": ["big"], "q8_0": ["model-q8_0"], "q4_k_m": ["small", "model"]}
# What is measured serves the others, and examples of help texts use what guides make.
_FIRST = ("imatrix", "measure")
_PAGES = sorted(PAGES, key=lambda page: page.name == "commands.md")
ALL = sorted(
    dict.fromkeys(command for page in _PAGES for command in commands(page)),
    key=lambda command: command.partition(" ")[2].startswith(_FIRST),
    reverse=True,
)


def why_not(command: str) -> str | None:
    """Why a command is not run; None: it is."""
    return next((why for known, why in NOT_RUN.items() if re.fullmatch(known, command)), None)


RUN = [command for command in ALL if not why_not(command)]


@pytest.fixture(scope="module")
def folder(cut, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the documentation starts from, under its names."""
    folder: Path = tmp_path_factory.mktemp("docs")
    for name in ("SRC", "CHECKPOINT"):
        (folder / name).symlink_to(checkpoint)
    for kind, names in FILES.items():
        made = cut(kind)
        for name in names:
            shutil.copy(made, folder / f"{name}.gguf")
    api.convert_checkpoint(folder / "SRC", folder / "model-bf16.gguf")
    text = held_out_text()[:30_000]
    (folder / "text.txt").write_text(text, encoding="utf-8")
    for domain, part in (("code", text[:9000]), ("prose", text[9000:18000])):
        (folder / "texts" / domain).mkdir(parents=True)
        (folder / "texts" / domain / "a.txt").write_text(part, encoding="utf-8")
    item = "Return the\n1\nsea\nlist\nrain\nmoon\n"
    (folder / "hellaswag.txt").write_text(item * 4, encoding="utf-8")
    (folder / "keys.txt").write_text("a-key-of-the-docs\n", encoding="utf-8")
    tomls = (b.text for page in PAGES for b in blocks(page) if b.language == "toml")
    (folder / "intent.toml").write_text(next(tomls), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work there, on a machine whose speeds are known; few points of a frontier, no pictures."""
    known = Kernels(dict.fromkeys(("q8_0", "q4_k"), 1e10))
    rates = Rates(known, Kernels(), 1e11, 0.0, 1e-6, 1e-6, True)
    monkeypatch.setattr(profiles, "measure_rates", lambda *args, **more: rates)
    monkeypatch.setattr(plots, "available", lambda: False)  # pictures take seconds
    monkeypatch.setattr(frontier, "_STEPS", ())
    monkeypatch.setattr(frontier, "_SIZE_STEPS", ())
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("command", RUN)
def test_a_command_does_what_it_says(command: str):
    """It ends well, and what it is to write is there."""
    before, _, last = command.rpartition(" '|' ")
    read = Path(shlex.split(before)[1]).read_text("utf-8") if before else "Hello"
    words = shlex.split(last)
    assert words[0] == "gemcut", f"{command}: run it, or say in NOT_RUN why it is not"

    result = CliRunner().invoke(main, words[1:] + list(less(words)), input=read[:500])

    assert result.exit_code == 0, result.output
    for flag in ("-o", "--save-plan", "--export-tensor-types"):
        if flag in words and "--dry-run" not in words:
            assert list(Path().glob(f"{Path(words[words.index(flag) + 1]).stem}*"))


@pytest.mark.parametrize("command", [c for c in ALL if why_not(c) and c.startswith("gemcut")])
def test_options_of_the_others_are_parsed(command: str):
    """What is not run is at least a command with its options."""
    _, name, *words = shlex.split(command)
    above = click.Context(main)

    with main.get_command(above, name).make_context(name, words, parent=above) as context:
        assert context.info_name == name


def test_nothing_is_excused_that_is_not_there():
    """Every reason is one for some command, and names tests that exist."""
    for known, why in NOT_RUN.items():
        assert any(re.fullmatch(known, command) for command in ALL), known
        assert all((ROOT / test).is_file() for test in re.findall(r"tests/\w+\.py", why))


def test_targets_scripts_and_extras_exist():
    """Of what is not gemcut's own command."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for command in ALL:
        words = shlex.split(command)
        if words[0] == "make":
            assert words[1] in targets
        if words[0] == "python":
            assert (ROOT / words[1]).is_file()
        for extra in re.findall(r"gemcut\[(\w+)\]", command):
            assert extra in extras["optional-dependencies"]


def less(words: Sequence[str]) -> Iterator[str]:
    """What is added to a command."""
    for option in LESS.get(words[1], ()):
        name, _, value = option.partition("=")
        if name not in words:
            yield from (name, value)
