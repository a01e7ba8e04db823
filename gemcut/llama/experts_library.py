"""The library that runs files with types per expert: where it is, how llama.cpp gets to know it.

Its source comes with gemcut (`runtime/experts`); `gemcut build-experts` compiles it into the user's
cache. It is found there by what it was made of, so that no old one is ever loaded.
"""

import ctypes
import hashlib
import os
import platform
import struct
import sys
from functools import cache
from pathlib import Path

import gemcut
from gemcut import ggml
from gemcut.engine import INSTALL, PINNED
from gemcut.errors import EngineError
from gemcut.llama.library import require
from gemcut.user_cache import cache_folder

BUILD = "gemcut build-experts"
_PLACES = ("ggml-base", "ggml-cpu", "ggml")
_ELF = struct.Struct("<40xQ10xHH2x")  # of 64 bits: where the sections' table is, its entries
_pointer, _text, _int = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "experts_names": (ctypes.POINTER(_text), []),
    "experts_begin": (_text, [_pointer]),
    "experts_new": (_pointer, [_pointer, _int, ctypes.c_bool, ctypes.c_bool]),
    "experts_free": (None, [_pointer]),
    "experts_error": (_text, [_pointer]),
    "experts_memory": (_pointer, [_pointer]),
    "experts_add": (
        ctypes.c_uint64,
        [_pointer, _text, ctypes.c_int64, ctypes.c_int64, _int, _pointer, _pointer, _pointer],
    ),
    "view_open": (_pointer, [_text, ctypes.c_uint64, _pointer, ctypes.c_int64, ctypes.c_uint64]),
    "view_close": (None, [_pointer]),
}


def sources() -> list[Path]:
    """The library's source files: C++ and headers."""
    folder = Path(gemcut.__file__).parent / "runtime" / "experts"
    return sorted([*folder.glob("*.cpp"), *folder.glob("*.h")])


def library_file() -> Path:
    """Where the library is once it is compiled; its name tells what it was made of and for.

    Raises:
        EngineError: the source is missing, or this system has no way to use it.
    """
    if sys.platform == "win32":
        raise EngineError(
            "files with types per expert do not run on Windows: make a stock file with "
            "`gemcut convert FILE -o STOCK.gguf`"
        )
    digest = hashlib.sha256(f"{PINNED} {sys.platform} {platform.machine()}".encode())
    try:
        for path in (files := sources()):
            digest.update(path.read_bytes())
    except OSError as error:
        raise EngineError(
            f"{path}: cannot be read ({error.strerror}): install gemcut anew"
        ) from error
    if not files:
        raise EngineError("gemcut was installed without the source of its library: install it anew")
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    return cache_folder() / "experts" / (digest.hexdigest()[:24] + suffix)


def is_whole(path: Path) -> bool:
    """Whether a library is there and was not cut short, which would end the process that loads it:
    the last thing in an ELF file is the table that its header tells the place of.
    """
    try:
        with path.open("rb") as file:
            head, size = file.read(_ELF.size), os.fstat(file.fileno()).st_size
    except OSError:
        return False
    if len(head) < _ELF.size:
        return False
    if not head.startswith(b"\x7fELF\x02\x01"):  # another format: its loader looks for itself
        return True
    table, entry_size, entries = _ELF.unpack(head)
    return bool(table + entry_size * entries <= size)


@cache
def library() -> ctypes.CDLL:
    """The library, known to llama.cpp from the first call on.

    Raises:
        EngineError: it was not built, does not load, or is for another ggml.
    """
    require()
    path = library_file()
    if not is_whole(path):
        raise EngineError(
            f"the library that runs types per expert is not built, or is damaged: run `{BUILD}`, "
            "or make a stock file with `gemcut convert FILE -o STOCK.gguf`"
        )
    try:
        found = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:  # another library has other functions
        raise EngineError(f"{path} does not load ({error}): delete it and run `{BUILD}`") from error
    _introduce(found)
    return found


def _introduce(found: ctypes.CDLL) -> None:
    """Hand the library the functions of ggml that it wants; it adds its device to llama.cpp's."""
    names: list[bytes] = []
    listed = found.experts_names()
    while name := listed[len(names)]:
        names.append(name)
    addresses = [_address(name.decode()) for name in names]
    if other := found.experts_begin((_pointer * len(addresses))(*addresses)):
        raise EngineError(
            f"ggml's {other.decode()} have another layout than what the library for types per "
            f"expert was made for: {INSTALL}"
        )


def _address(name: str) -> int:
    """Where a function of ggml's is."""
    for place in _PLACES:
        try:
            address = ctypes.cast(ggml.library(place)[name], _pointer).value
        except AttributeError:
            continue
        if address:
            return address
    raise EngineError(f"ggml has no {name}: {INSTALL}")
