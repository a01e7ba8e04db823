"""The house: which room may import which, what is packaged, and what no file may contain."""

import ast
import re
import runpy
import subprocess
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.engine import PINNED
from tests.child import run_code

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
ROOMS = sorted(SETUPTOOLS["package-dir"].values())

# What each room may import of gemcut, besides itself.
MAY_IMPORT = {
    "gemcut": set(),
    "convert": {"gemcut"},
    "runtime": {"gemcut"},
    "quantize": {"gemcut", "convert", "runtime"},
    "eval": {"gemcut", "runtime"},
}
CLI = re.compile(r"gemcut/cli(\.py|/.*)")
LLAMA = re.compile(r"gemcut/llama(\.py|/.*)")
# The modules on top of the rooms: they may import all, and no room imports them.
TOP = re.compile(rf"{CLI.pattern}|gemcut/(api/.*|__main__\.py|demo/walk\.py)")
TOP_MODULE = re.compile(r"gemcut\.(api|cli|__main__|demo\.walk)(\..*)?")
# Where alone a module outside gemcut may be imported at all.
ONLY_IN = {
    "ctypes": re.compile(rf"{LLAMA.pattern}|gemcut/(ggml|last_words)\.py"),
    "click": CLI,
    "torch": re.compile(r"gemcut/demo/train\.py"),
    "transformers": re.compile(r"gemcut/demo/train\.py"),
    "tokenizers": re.compile(r"gemcut/demo/train\.py"),
}
# Loading these takes long or needs an extra: only inside functions, but for the modules named.
LAZY = {
    "llama_cpp": LLAMA,
    "torch": re.compile(r"gemcut/demo/train\.py"),
}
MAY_PRINT = re.compile(rf"{CLI.pattern}|gemcut/demo/train\.py")


def sources() -> Iterator[tuple[str, str]]:
    """Path from the root and text of every module that is installed."""
    for part in ["gemcut", *ROOMS]:
        for path in sorted((ROOT / part).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            # Newer Pythons may follow the links; each file counts once, where it really is.
            if not name.startswith(tuple(f"gemcut/{room}/" for room in ROOMS)):
                yield name, path.read_text(encoding="utf-8")


def imports(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Every import anywhere in a module, as full dotted names; relative ones begin with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield node, module
            yield from ((node, f"{module}.{alias.name}") for alias in node.names)


def room_of(module: str) -> str:
    """The room a module of gemcut is in: gemcut.eval.score is in eval, gemcut.sizes in gemcut."""
    part = module.split(".")[1] if "." in module else ""
    return part if part in ROOMS else "gemcut"


def import_fault(name: str, module: str, inside_function: bool) -> str | None:
    """What is wrong with the file `name` importing `module`, or None."""
    top = module.split(".")[0]
    if top == "" or top in ROOMS:
        return "is not absolute from gemcut"
    if top == "gemcut" and not TOP.fullmatch(name):
        own = name.split("/")[0]
        if TOP_MODULE.fullmatch(module):
            return "stands above the rooms"
        if room_of(module) not in MAY_IMPORT[own] | {own}:
            return f"is out of bounds for {own}/"
    if top in ONLY_IN and not ONLY_IN[top].fullmatch(name):
        return "belongs to other modules"
    if top in LAZY and not inside_function and not LAZY[top].fullmatch(name):
        return "is imported outside a function"
    return None


def faults(name: str, text: str) -> list[str]:
    """Every breach of the house's rules in one module, with its line."""
    tree = ast.parse(text)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {id(inner) for function in functions for inner in ast.walk(function)}
    found = [
        f"{name}:{node.lineno}: {module} {fault}"
        for node, module in imports(tree)
        if (fault := import_fault(name, module, id(node) in late))
    ]
    for node in ast.walk(tree):
        if MAY_PRINT.fullmatch(name):
            break
        if isinstance(node, ast.Name) and node.id == "print":
            found.append(f"{name}:{node.lineno}: print belongs to the command line")
    return found


def test_the_rooms_keep_to_their_imports():
    """No installed module imports against the arrows, prints, or takes what belongs elsewhere."""
    found = [fault for name, text in sources() for fault in faults(name, text)]

    assert [] == found


BREACHES = [
    ("gemcut/sizes.py", "import gemcut.convert"),
    ("gemcut/sizes.py", "from gemcut import eval"),
    ("gemcut/demo/text.py", "from gemcut.runtime.machine.inspection import Machine"),
    ("gemcut/sizes.py", "from gemcut import api"),
    ("convert/reader.py", "from gemcut.runtime import machine"),
    ("convert/families/gemma4.py", "import gemcut.quantize.solve as solve"),
    ("runtime/memory/ledger.py", "from gemcut.eval.report import Report"),
    ("runtime/memory/ledger.py", "from gemcut.cli import main"),
    ("quantize/solve.py", "from gemcut.eval import score"),
    ("eval/report.py", "from gemcut.convert.reader import Reader"),
    ("eval/report.py", "from . import score"),
    ("eval/report.py", "from .score import Score"),
    ("eval/report.py", "from eval import score"),
    ("runtime/chat/chat.py", "import click"),
    ("gemcut/api/cutting.py", "from click import echo"),
    ("runtime/probe.py", "import ctypes"),
    ("gemcut/cli.py", "from ctypes import c_int"),
    ("convert/reader.py", "import torch"),
    ("eval/report.py", "import transformers"),
    ("eval/report.py", "print('done')"),
    ("gemcut/api/cutting.py", "show = print"),
]
FRAMES = [
    "def f():\n{}",
    "async def f():\n{}",
    "class C:\n{}",
    "if True:\n{}",
    "try:\n    pass\nfinally:\n{}",
    "with open(__file__):\n{}",
]


@given(st.sampled_from(BREACHES), st.lists(st.sampled_from(FRAMES), max_size=4))
def test_a_planted_breach_is_found(breach, frames):
    """However deep a forbidden import or print is nested, the checker finds it."""
    name, text = breach
    for frame in frames:
        text = frame.format(textwrap.indent(text, "    "))

    assert faults(name, f"import math\n{text}\n")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "gemcut/api/cutting.py",
            "def convert_checkpoint():\n    from gemcut.convert import writer",
        ),
        ("gemcut/cli/evaluate.py", "import click\nprint('done')"),
        ("gemcut/ggml.py", "import ctypes"),
        ("gemcut/llama.py", "import ctypes\nimport llama_cpp"),
        ("gemcut/demo/train.py", "import torch\nprint(1)"),
        (
            "quantize/solve.py",
            "from gemcut.runtime import machine\nfrom gemcut.convert import plan",
        ),
        ("eval/score.py", "from gemcut.runtime import machine\nfrom gemcut.eval import text"),
        ("runtime/chat/chat.py", "def talk():\n    import llama_cpp"),
    ],
)
def test_what_is_allowed_is_not_a_breach(name, text):
    """The checker leaves alone what the rules allow."""
    assert [] == faults(name, text)


def test_llama_cpp_is_not_loaded_by_importing_a_module():
    """Outside gemcut.llama, llama_cpp is imported inside functions only."""
    assert faults("runtime/chat/chat.py", "class C:\n    import llama_cpp")


def test_importing_gemcut_loads_nothing_heavy():
    """`gemcut --help` waits for neither llama.cpp nor torch, numpy or the Hub's client."""
    heavy = {"gguf", "huggingface_hub", "llama_cpp", "numpy", "safetensors", "torch"}
    code = f"import sys, gemcut, gemcut.cli; print(*sorted({heavy!r} & sys.modules.keys()))"

    done = run_code(code)

    assert (0, "") == (done.returncode, done.stdout.strip()), done.stderr


def test_every_package_is_listed():
    """A package missing from pyproject.toml works in an editable install and not in a wheel."""
    inits = [name for name, _ in sources() if name.endswith("/__init__.py")]
    parents = [name.removesuffix("/__init__.py").replace("/", ".") for name in inits]
    found = {name if name.split(".")[0] == "gemcut" else f"gemcut.{name}" for name in parents}

    assert found == set(SETUPTOOLS["packages"])


def test_every_folder_with_modules_is_a_package():
    """Without __init__.py a folder would escape the check above, and the wheel."""
    folders = {(ROOT / name).parent for name, _ in sources()}

    assert [] == [folder for folder in folders if not (folder / "__init__.py").exists()]


@pytest.mark.parametrize("room", ROOMS)
def test_a_link_stands_for_every_room(room):
    """Static checkers and PYTHONPATH=. find gemcut.convert etc. through the links."""
    link = ROOT / "gemcut" / room

    assert link.is_symlink()
    assert link.resolve() == (ROOT / room).resolve()


def test_the_engine_is_pinned_exactly():
    """The structures and symbols in use are those of one version, named twice alike."""
    required = PYPROJECT["project"]["dependencies"]

    assert {"gguf==0.19.0", f"llama-cpp-python=={PINNED}"} <= set(required)
    assert not [line for line in required if line.startswith(("torch", "transformers"))]


def test_every_build_of_llama_cpp_has_a_wheel_of_its_own():
    """Another version, option or CPU is another folder in the cache; another spacing is not."""
    script = runpy.run_path(str(ROOT / ".ci" / "engine.py"))
    key = script["key"]
    builds = [
        (version, options, cpu)
        for version in ("0.3.36", "0.3.37")
        for options in ("-DGGML_RPC=on", "-DGGML_RPC=on -DGGML_CUDA=on")
        for cpu in ("avx2", "avx2 avx512f")
    ]

    assert PINNED == script["pinned_version"]()
    assert len(builds) == len({key(*build) for build in builds})
    assert key("1", "-DA=on -DB=on", "x") == key("1", "-DA=on   -DB=on", "x")


def text_files() -> Iterator[tuple[str, str]]:
    """Path and text of every file git tracks or would track; of all files outside a checkout."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines() or [
        path.relative_to(ROOT).as_posix()
        for folder in [ROOT, *(p for p in ROOT.iterdir() if p.is_dir() and not ignored(p))]
        for path in (folder.glob("*") if folder == ROOT else folder.rglob("*"))
    ]
    for name in names:
        path = ROOT / name
        if path.is_file() and not path.is_symlink() and b"\0" not in (data := path.read_bytes()):
            yield name, data.decode("utf-8", errors="replace")


def ignored(folder: Path) -> bool:
    """Whether a folder at the root holds what make builds or downloads."""
    return folder.name in {".venv", "build", "dist", "vendor"} or folder.name.endswith("_cache")


# Written in pieces, so that this file does not contain them.
PRIVATE = re.compile(
    r"(?<![\w.])/(?:wo" r"rk|tmp/w|ro" r"ot)/|/(?:ho" r"me|Us" r"ers)/\w|[A-Z]:\\Us" r"ers"
)
REGISTRY = re.compile(
    r"pypi\.o" r"rg|pytho" r"nhosted|download\.pyt" r"orch|--(?:extra-)?index-u" r"rl"
)


def test_no_file_names_a_machine_or_a_registry():
    """Paths of the machine it was written on, and hosts of package registries, stay out."""
    found = [
        f"{name}: {match[0]}"
        for name, text in text_files()
        for pattern in (PRIVATE, REGISTRY)
        for match in pattern.finditer(text)
    ]

    assert [] == found


@pytest.mark.parametrize(
    "text",
    [
        # in pieces, or this file would be found
        "/ro" + "ot/.cache/x",
        "see /ho" + "me/ann/model",
        "'/t" + "mp/w/t0'",
        "https://py" + "pi.org/simple",
    ],
)
def test_a_path_or_host_would_be_found(text):
    """The patterns match what they are for."""
    assert PRIVATE.search(text) or REGISTRY.search(text)
