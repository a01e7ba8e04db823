"""Other systems: what Windows lacks is asked for nowhere, and results are the same without it."""

import os
import subprocess

import pytest

from tests.child import ROOT, run_code

# What Python has on Unix alone, as far as anything here could want it.
MODULES = ("curses", "fcntl", "grp", "pty", "pwd", "readline", "resource", "termios", "tty")
FUNCTIONS = (
    "O_CLOEXEC",
    "O_NONBLOCK",
    "fdatasync",
    "fork",
    "geteuid",
    "getuid",
    "killpg",
    "posix_fallocate",
    "pread",
    "pwrite",
    "sched_getaffinity",
    "setsid",
    "sysconf",
)

# All is imported twice, so that what comes from elsewhere is there before the system changes.
IMPORTING = f"""
import importlib, os, pkgutil, signal, sys, types
import gemcut
def everything():
    for found in pkgutil.walk_packages(importlib.import_module("gemcut").__path__, "gemcut."):
        if found.name != "gemcut.demo.train":  # needs torch
            importlib.import_module(found.name)
everything()
for name in [name for name in sys.modules if name.partition(".")[0] == "gemcut"]:
    del sys.modules[name]
sys.modules.update(dict.fromkeys({MODULES!r}), msvcrt=types.ModuleType("msvcrt"))
for name in {FUNCTIONS!r}:
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGBUS", "pthread_kill"):
    delattr(signal, name)
sys.platform = "win32"
everything()
print(sum(name.startswith("gemcut.") for name in sys.modules))
"""

CUTTING = f"""
import os, sys
from pathlib import Path
from gemcut import api
for name in {FUNCTIONS!r}:
    delattr(os, name)
source, output = map(Path, sys.argv[1:])
api.quantize_model(source, output, "q8_0", threads=2)
print(api.inspect_source(output).size, api.open_source(output).weights)
"""


@pytest.mark.skipif(os.name == "nt", reason="takes away what is not there")
def test_every_module_is_imported_where_there_is_no_unix():
    """No module needs fcntl, signals or calls of Unix to be imported."""
    done = run_code(IMPORTING, PYTHONWARNINGS="error")

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 200


@pytest.mark.skipif(os.name == "nt", reason="takes away what is not there")
def test_a_file_is_the_same_without_what_unix_has(checkpoint, q8_0, tmp_path):
    """Written without positional writes and reserved room, and read back."""
    output = tmp_path / "a.gguf"

    done = run_code(CUTTING, checkpoint, output, PYTHONWARNINGS="error")

    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == q8_0.read_bytes()
    assert str(output.stat().st_size // 10**6) in done.stdout


def test_no_file_has_a_name_that_windows_refuses():
    """Nor two that differ in case alone."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()

    strange = [name for name in names if set(name) & set('<>:"\\|?*') or name.endswith((".", " "))]
    reserved = {"con", "prn", "aux", "nul"}
    parts = {part.partition(".")[0].lower() for name in names for part in name.split("/")}

    assert [] == strange
    assert not reserved & parts
    assert len(names) == len({name.lower() for name in names})
    assert max(map(len, names), default=0) < 120
