"""docs/python.md is what docs/notebook.py says and prints.

`python -m tests.test_python_docs` makes the page anew.
"""

import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOK, PAGE = DOCS / "notebook.py", DOCS / "python.md"


@dataclass(frozen=True)
class Cell:
    """A cell of the notebook; what one that `varies` prints may be other words elsewhere."""

    kind: str  # "[markdown]", "", "varies"
    text: str


def cells() -> list[Cell]:
    """The notebook's cells, text without its comment signs."""
    found = []
    for part in re.split(r"^# %%", NOTEBOOK.read_text("utf-8"), flags=re.M)[1:]:
        kind, _, text = part.partition("\n")
        if "markdown" in kind:
            text = re.sub(r"^# ?", "", text, flags=re.M)
        found.append(Cell(kind.strip(), text.strip("\n")))
    return found


def rendered(folder: Path) -> Iterator[tuple[Cell, str]]:
    """Each cell, run in a folder, with what stands for it on the page."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with chdir(folder):
        for cell in cells():
            if "markdown" in cell.kind:
                yield cell, f"{cell.text}\n"
                continue
            with redirect_stdout(io.StringIO()) as said:
                exec(compile(cell.text, NOTEBOOK.name, "exec"), names)
            output = f"\n```text\n{said.getvalue().rstrip()}\n```\n" if said.getvalue() else ""
            yield cell, f"```python\n{cell.text}\n```\n{output}"


def shape(text: str) -> str:
    """The text without its numbers, which other processors compute a little otherwise."""
    return re.sub(r"\d+", "0", text)


def test_the_page_is_what_the_notebook_prints(tmp_path):
    """Run from beginning to end; but for numbers, and what a model says, to the letter."""
    page = PAGE.read_text("utf-8")

    for cell, text in rendered(tmp_path):
        if cell.kind == "varies":
            text = f"```python\n{cell.text}\n```\n"
        assert shape(text) in shape(page)
    assert [] == [word for word in ("/tmp", str(tmp_path)) if word in page]


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        text = "\n".join(text for _, text in rendered(Path(folder)))
    PAGE.write_text(text, "utf-8", newline="\n")
    sys.stderr.write(f"{PAGE.name} is written\n")


if __name__ == "__main__":
    main()
