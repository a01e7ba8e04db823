"""The demo's text: source and docstrings of the Python standard library on this machine.

Real English and real code that is installed everywhere, so nothing is downloaded and nothing is
committed. A fixed list of modules is held out of training; scores are taken on those alone. The
standard library differs a little between Python versions, and so do the scores.
"""

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Present as single files in every supported Python, and of mixed kind: parsers, maths, formats.
HELD_OUT = (
    "argparse.py",
    "calendar.py",
    "configparser.py",
    "csv.py",
    "difflib.py",
    "fractions.py",
    "heapq.py",
    "ipaddress.py",
    "mailbox.py",
    "optparse.py",
    "shlex.py",
    "statistics.py",
    "tarfile.py",
    "textwrap.py",
    "uuid.py",
)

# Tables, generated files and the interpreter's own tests teach a small model nothing.
_LEFT_OUT = {
    "site-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "__pycache__",
    "__phello__",
}


def library() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def held_out_text() -> str:
    """The modules kept out of training, one after the other: the demo's evaluation text."""
    return "\n".join(_read(library() / name) for name in HELD_OUT if (library() / name).is_file())


def training_sources() -> Iterator[str]:
    """The source of every module that is neither held out nor left out, in a fixed order."""
    root = library()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _LEFT_OUT.isdisjoint(parts) and path.name not in HELD_OUT:
            yield _read(path)


def questions(source: str) -> Iterator[tuple[str, str]]:
    """Question and answer for each documented function or class of a module's source."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # templates and lib2to3's Python 2 examples
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            answer = inspect.cleandoc(text).split("\n\n")[0]
            if 20 <= len(answer) <= 400:
                yield f"What does the {kind} {node.name} do?", answer


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")
