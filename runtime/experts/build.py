"""Compile the library that runs files with types per expert, into the user's cache."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gemcut import ggml
from gemcut.engine import INSTALL
from gemcut.errors import EngineError
from gemcut.llama.experts_library import library_file, sources

_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden")
_PATIENCE = 600  # seconds
_SHOWN = 400  # characters of what a compiler says


def compiler() -> str | None:
    """The C++ compiler to use: $CXX, or the first of the usual ones that is there."""
    given = os.environ.get("CXX")
    names = [given] if given else ["c++", "g++", "clang++"]
    return next((found for found in map(shutil.which, names) if found), None)


def is_built() -> bool:
    """Whether the library for this gemcut and this llama-cpp-python is there."""
    return library_file().is_file()


def build() -> Path:
    """Compile the library if it is not there; where it is.

    Raises:
        EngineError: there is no compiler, there are no headers of ggml, or it did not compile.
    """
    path = library_file()
    if path.is_file():
        return path
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        compile_into(partial)
        partial.replace(path)
    except OSError as error:
        raise EngineError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def compile_into(path: Path, more: Sequence[Path] = (), flags: Sequence[str] = _FLAGS) -> None:
    """Compile the library's source, and more, into a file. Raises EngineError as `build` does."""
    cxx = compiler()
    if cxx is None:
        raise EngineError(
            "there is no C++ compiler to build the library for types per expert: install one (as "
            "`apt install g++` or `xcode-select --install` does), or name it in $CXX"
        )
    code = [str(source) for source in (*sources(), *more) if source.suffix == ".cpp"]
    command = [cxx, *flags, f"-I{headers()}", *code, "-o", str(path)]
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
        raise EngineError(f"{cxx} did not run: {error}") from error
    if done.returncode:
        raise EngineError(f"{cxx} refused ({' '.join(command)}): {done.stderr[:_SHOWN]}")


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
