"""The documentation as data: its pages, blocks, commands, links and headings."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = "sh"  # what a block of them is marked with
TRANSCRIPT = "console"  # in which they stand after "$ "

_FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```$", re.M | re.S)
_HEADING = re.compile(r"^#+ (.+)$", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block: what it is marked with, and its text."""

    language: str
    text: str


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(found[2], found[3]) for found in _FENCE.finditer(page.read_text("utf-8"))]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def commands(page: Path) -> Iterator[str]:
    """The commands of a page, without comments; lines that end in a backslash are one."""
    for block in blocks(page):
        lines = block.text.replace("\\\n", " ").splitlines()
        if block.language == TRANSCRIPT:
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        if block.language in (COMMANDS, TRANSCRIPT):
            # As a shell divides a line; of what it treats specially, pipes are looked at later.
            divided = (shlex.split(line, comments=True) for line in lines)
            yield from (shlex.join(words) for words in divided if words)


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    return {_anchor(heading) for heading in _HEADING.findall(prose(page))}


def _anchor(heading: str) -> str:
    bare = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", bare).replace(" ", "-")
