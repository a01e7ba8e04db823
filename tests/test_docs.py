"""The documentation says what is: links lead somewhere, options exist, formats name every key."""

import dataclasses
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from gemcut import plan, profile, sensitivity, tensor_sensitivity
from gemcut.cli import COMMANDS, main
from gemcut.cli.reference import reference
from gemcut.errors import UsageError
from gemcut.eval import comparison
from gemcut.eval.files import File
from gemcut.eval.routing.agreement import Agreement
from gemcut.eval.scoring.column import Column
from gemcut.eval.statistics.intervals import Estimate
from gemcut.eval.statistics.summary import Summary
from gemcut.eval.statistics.ties import Pair
from gemcut.eval.tasks.result import TaskResult, TaskRow
from gemcut.eval.texts.diagnosis import Diagnosis
from gemcut.quantize.intent import understand
from gemcut.quantize.request import Request
from gemcut.runtime.speed.measured import MeasuredSpeed
from tests.documents import PAGES, ROOT, blocks, headings, name_of, prose

FORMATS = (ROOT / "docs" / "formats.md").read_text("utf-8")
LANGUAGES = {"sh", "console", "text", "json", "toml", "yaml", "python"}
# Pages that programs of their own make: those mark no blocks.
MADE = {"docs/benchmarks.md"}
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_OPTION = re.compile(r"(?<![\w/-])--?[a-zA-Z][\w-]*")
# What looks like an option of gemcut's and is something else's.
OTHERS = {
    "llama.cpp": "--save-all-logits --tensor-type-file -cram -ctxcp -fit",
    "pip": "--no-cache-dir --force-reinstall --no-binary",
    "lm-evaluation-harness": "--batch_size --apply_chat_template --include_path --task",
    "gemcut itself": "--version",
    "ruff, mypy, python": "--check --strict -m",
    "scripts of bench": "--real",
    "compilers": "-DGGML_CUDA -DGGML_METAL -DGGML_VULKAN -DGGML_HIP -DGGML_RPC",
    "an architecture's name": "-with-types-per-expert",
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    """Every relative link names a file of the repository, and every anchor a heading in it."""
    for link in _LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert ROOT in target.parents, link
        assert not anchor or anchor in headings(target), link


def test_every_page_is_reached_from_the_readme():
    """Nobody has to look for a page."""
    reached, left = set(), {PAGES[0]}
    while left:
        page = left.pop()
        reached.add(page)
        links = (link.partition("#")[0] for link in _LINK.findall(prose(page)))
        found = {(page.parent / link).resolve() for link in links if link.endswith(".md")}
        left |= (found & {*PAGES}) - reached

    assert {name_of(page) for page in PAGES} == {name_of(page) for page in reached}


@pytest.mark.parametrize("page", [p for p in PAGES if name_of(p) not in MADE], ids=name_of)
def test_blocks_say_what_they_are(page: Path):
    """No command hides in a block that nobody runs."""
    for block in blocks(page):
        assert block.language in LANGUAGES, block.text
        if block.language == "text":
            assert not re.search(r"^\s*(\$ )?gemcut [a-z]+ ", block.text, re.M), block.text
    assert "\n```" not in prose(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_exist(page: Path):
    """Every option that stands in the text as code is one of gemcut's, or known to be another's."""
    known = {*options(), *" ".join(OTHERS.values()).split()}
    named = {word for code in _CODE.findall(prose(page)) for word in _OPTION.findall(code)}

    assert set() == named - known


def test_the_reference_is_the_programs_own():
    """docs/commands.md is what `make docs` makes."""
    assert (ROOT / "docs" / "commands.md").read_text("utf-8") == reference()


def test_the_reference_has_every_option():
    page = reference()

    assert [] == [name for name in COMMANDS if f"\n## gemcut {name}\n" not in page]
    assert [] == [option for option in options() if option not in page]


@pytest.mark.parametrize(
    "kind",
    [
        *(plan.Plan, plan.Entry, plan.Measured, Request),
        *(sensitivity.Sensitivity, sensitivity.GroupWeight, tensor_sensitivity.TensorSensitivity),
        *(profile.Profile, profile.Processor, profile.Kernels),
        *(comparison.Report, comparison.Protocol, comparison.Effects, comparison.Anatomy),
        *(Column, File, Summary, Agreement, Pair, MeasuredSpeed, Diagnosis, Estimate),
        *(TaskResult, TaskRow, comparison.Comparison, comparison.Row),
    ],
    ids=lambda kind: kind.__name__,
)
def test_formats_name_every_key(kind: type):
    """What a file can say stands on the page; what is kept elsewhere or nowhere is left out."""
    left_out = {"path", "scores", "clusters", "sizes", "correct", "chosen"}
    names = {field.name for field in dataclasses.fields(kind)} - left_out

    assert set() == {name for name in names if f"`{name}`" not in FORMATS}


def test_formats_name_every_word_of_an_intent():
    """The table is what the reader of intents understands."""
    section = FORMATS.partition("## Intent")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", section, re.M)
    keys = {key for cell in cells for key in _CODE.findall(cell)}
    with pytest.raises(UsageError) as refused:
        understand({"nothing of the kind": 1})
    known = set(str(refused.value).partition("known are ")[2].split(", "))

    assert keys == known


def test_an_intent_of_the_docs_is_understood():
    """So is each block of TOML."""
    found = [b.text for page in PAGES for b in blocks(page) if b.language == "toml"]

    assert found
    for text in found:
        understand(tomllib.loads(text))


def test_python_of_the_docs_is_python():
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                compile(block.text, name_of(page), "exec")


def options() -> Iterator[str]:
    """Every option of every command."""
    above = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(above, name)
        for param in command.params:
            if isinstance(param, click.Option):
                yield from (*param.opts, *param.secondary_opts)
    yield from ("--help", "-h")
