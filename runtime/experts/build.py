"""Compile the library that runs files with types per expert, into the user's cache."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gemcut import ggml
from gemcut.engine import INSTALL
from gemcut.errors import EngineError
from gemcut.llama.experts_library import is_whole, library_file, sources
from gemcut.user_cache import keep_latest

_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden")
_PATIENCE = 600  # seconds
_SHOWN = 400  # characters of what a compiler says
_MOST_KEPT = 4  # of other versions, which may be installed beside this one


def compiler() -> list[str]:
    """The C++ compiler to use, with arguments if $CXX has some; else the first of the usual ones.

    Empty: there is none.
    """
    given = os.environ.get("CXX", "").strip()
    try:
        commands = [shlex.split(given)] if given else [["c++"], ["g++"], ["clang++"]]
    except ValueError:  # a quote that is never closed
        return []
    return next((command for command in commands if shutil.which(command[0])), [])


def is_built() -> bool:
    """Whether the library for this gemcut and this llama-cpp-python is there."""
    return is_whole(library_file())


def build() -> Path:
    """Compile the library if it is not there, or damaged; where it is.

    Raises:
        EngineError: there is no compiler, there are no headers of ggml, or it did not compile.
    """
    path = library_file()
    if is_whole(path):
        return path
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            compile_into(partial)
            with partial.open("rb") as made:
                os.fsync(made.fileno())  # one that is cut short ends the process that loads it
            partial.replace(path)
            keep_latest(path.parent.glob(f"*{path.suffix}"), _MOST_KEPT)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def compile_into(path: Path, more: Sequence[Path] = (), flags: Sequence[str] = _FLAGS) -> None:
    """Compile the library's source, and more, into a file. Raises EngineError as `build` does."""
    if not (cxx := compiler()):
        raise EngineError(
            "there is no C++ compiler to build the library for types per expert: install one (as "
            "`apt install g++` or `xcode-select --install` does), or name it in $CXX"
        )
    code = [str(source) for source in (*sources(), *more) if source.suffix == ".cpp"]
    command = [*cxx, *flags, f"-I{headers()}", *code, "-o", str(path)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{cxx[0]} did not run: {error}") from error
    if done.returncode:
        raise EngineError(f"{cxx[0]} refused ({' '.join(command)}): {done.stderr[:_SHOWN]}")


def headers() -> Path:
    """The folder of ggml's public headers, which llama-cpp-python installs beside itself.

    Raises:
        EngineError: they are not there.
    """
    packages = ggml.library_folder().parent.parent
    for folder in (packages / "include", packages.parent / "include"):
        if (folder / "ggml-backend.h").is_file():
            return folder
    raise EngineError(f"{packages / 'include'} has no headers of ggml: {INSTALL}")
