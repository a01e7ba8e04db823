"""llama.cpp's libraries: found, checked once, their log kept here instead of written to stderr."""

import ctypes
import importlib
import importlib.util
import re
import sys
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

from gemcut import ggml
from gemcut.engine import INSTALL, PINNED
from gemcut.errors import EngineError, printable
from gemcut.last_words import given_up

_pointer, _size, _text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
_int, _long, _float = ctypes.c_int, ctypes.c_int64, ctypes.c_float


class Room(ctypes.Structure):
    """`struct ggml_init_params`: where ggml notes tensors and graphs."""

    _fields_ = [("size", _size), ("buffer", _pointer), ("no_alloc", ctypes.c_bool)]


# Of ggml.h, ggml-backend.h and ggml-rpc.h: library, result, arguments.
_GGML: dict[str, tuple[str, Any, list[Any]]] = {
    "ggml_backend_reg_count": ("ggml", _size, []),
    "ggml_backend_reg_get": ("ggml", _pointer, [_size]),
    "ggml_backend_reg_by_name": ("ggml", _pointer, [_text]),
    "ggml_backend_register": ("ggml", None, [_pointer]),
    "ggml_backend_dev_count": ("ggml", _size, []),
    "ggml_backend_dev_get": ("ggml", _pointer, [_size]),
    "ggml_backend_dev_by_name": ("ggml", _pointer, [_text]),
    "ggml_backend_reg_name": ("ggml-base", _text, [_pointer]),
    "ggml_backend_reg_dev_count": ("ggml-base", _size, [_pointer]),
    "ggml_backend_reg_dev_get": ("ggml-base", _pointer, [_pointer, _size]),
    "ggml_backend_dev_name": ("ggml-base", _text, [_pointer]),
    "ggml_backend_dev_description": ("ggml-base", _text, [_pointer]),
    "ggml_backend_dev_type": ("ggml-base", ctypes.c_int, [_pointer]),
    "ggml_backend_dev_memory": ("ggml-base", None, [_pointer, _pointer, _pointer]),
    "ggml_backend_dev_buffer_type": ("ggml-base", _pointer, [_pointer]),
    "ggml_backend_cpu_buffer_from_ptr": ("ggml-base", _pointer, [_pointer, _size]),
    "ggml_backend_cpu_buffer_type": ("ggml-base", _pointer, []),
    "ggml_backend_buffer_name": ("ggml-base", _text, [_pointer]),
    "ggml_backend_tensor_get": ("ggml-base", None, [_pointer, _pointer, _size, _size]),
    "ggml_backend_tensor_set": ("ggml-base", None, [_pointer, _pointer, _size, _size]),
    "ggml_backend_tensor_alloc": ("ggml-base", _int, [_pointer] * 3),
    "ggml_backend_alloc_ctx_tensors": ("ggml-base", _pointer, [_pointer, _pointer]),
    "ggml_backend_buffer_free": ("ggml-base", None, [_pointer]),
    "ggml_backend_buffer_get_alignment": ("ggml-base", _size, [_pointer]),
    "ggml_backend_buffer_get_alloc_size": ("ggml-base", _size, [_pointer, _pointer]),
    "ggml_backend_buffer_get_base": ("ggml-base", _pointer, [_pointer]),
    "ggml_backend_buft_name": ("ggml-base", _text, [_pointer]),
    "ggml_backend_buft_alloc_buffer": ("ggml-base", _pointer, [_pointer, _size]),
    "ggml_backend_buft_get_max_size": ("ggml-base", _size, [_pointer]),
    "ggml_backend_dev_backend_reg": ("ggml-base", _pointer, [_pointer]),
    "ggml_backend_dev_host_buffer_type": ("ggml-base", _pointer, [_pointer]),
    "ggml_backend_dev_init": ("ggml-base", _pointer, [_pointer, _text]),
    "ggml_backend_dev_supports_op": ("ggml-base", ctypes.c_bool, [_pointer, _pointer]),
    "ggml_backend_free": ("ggml-base", None, [_pointer]),
    "ggml_backend_graph_compute": ("ggml-base", _int, [_pointer, _pointer]),
    "ggml_backend_reg_get_proc_address": ("ggml-base", _pointer, [_pointer, _text]),
    "ggml_set_abort_callback": ("ggml-base", _pointer, [_pointer]),
    "ggml_init": ("ggml-base", _pointer, [Room]),
    "ggml_free": ("ggml-base", None, [_pointer]),
    "ggml_tensor_overhead": ("ggml-base", _size, []),
    "ggml_graph_overhead_custom": ("ggml-base", _size, [_size, ctypes.c_bool]),
    "ggml_new_tensor_2d": ("ggml-base", _pointer, [_pointer, _int, _long, _long]),
    "ggml_new_tensor_3d": ("ggml-base", _pointer, [_pointer, _int, _long, _long, _long]),
    "ggml_new_graph_custom": ("ggml-base", _pointer, [_pointer, _size, ctypes.c_bool]),
    "ggml_build_forward_expand": ("ggml-base", None, [_pointer, _pointer]),
    "ggml_add": ("ggml-base", _pointer, [_pointer] * 3),
    "ggml_add_inplace": ("ggml-base", _pointer, [_pointer] * 3),
    "ggml_mul_inplace": ("ggml-base", _pointer, [_pointer] * 3),
    "ggml_tanh_inplace": ("ggml-base", _pointer, [_pointer] * 2),
    "ggml_scale_bias_inplace": ("ggml-base", _pointer, [_pointer] * 2 + [_float] * 2),
    "ggml_mul_mat": ("ggml-base", _pointer, [_pointer] * 3),
    "ggml_mul_mat_id": ("ggml-base", _pointer, [_pointer] * 4),
    "ggml_flash_attn_ext": ("ggml-base", _pointer, [_pointer] * 5 + [_float] * 3),
    "ggml_permute": ("ggml-base", _pointer, [_pointer] * 2 + [_int] * 4),
    "ggml_get_data": ("ggml-base", _pointer, [_pointer]),
    "ggml_nbytes": ("ggml-base", _size, [_pointer]),
    "ggml_get_name": ("ggml-base", _pointer, [_pointer]),
    "ggml_op_desc": ("ggml-base", _text, [_pointer]),
    "ggml_backend_rpc_add_server": ("ggml-rpc", _pointer, [_text]),
    "ggml_backend_rpc_start_server": (
        "ggml-rpc",
        None,
        [_text, _text, _size, _size, ctypes.POINTER(_pointer)],
    ),
}

# What llama.cpp itself fills in: the first and last fields and a few between tell whether the
# structs that the bindings declare are those of the library.
_MODEL_DEFAULTS = {
    "devices": None,
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "vocab_only": False,
    "use_extra_bufts": True,
    "no_alloc": False,
    "load_mtp": False,
}
_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1,
    "flash_attn_type": -1,
    "defrag_thold": -1.0,
    "type_k": 1,
    "type_v": 1,
    "offload_kqv": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "n_samplers": 0,
    "ctx_other": None,
}


class Log:
    """The last lines of llama.cpp's log; of debugging only what says where things are placed."""

    _DEBUG, _ERROR, _CONTINUED = 1, 4, 5  # enum ggml_log_level
    _PLACED = re.compile(r"layer +\d+: dev = |overridden to")

    def __init__(self) -> None:
        self.count = 0  # lines ever kept
        self._lines: deque[tuple[int, str]] = deque(maxlen=20_000)
        self._level, self._partial = self._DEBUG, b""

    def take(self, level: int, text: bytes, _: object) -> None:
        """The callback. Text comes in pieces that may end within a line or a character."""
        if level != self._CONTINUED:
            self._level = level
        *lines, self._partial = (self._partial + text).split(b"\n")
        for line in lines:
            self._add(line.decode("utf-8", errors="replace"))

    def _add(self, line: str) -> None:
        if self._level != self._DEBUG or self._PLACED.search(line):
            self._lines.append((self._level, line))
            self.count += 1

    def since(self, mark: int) -> list[str]:
        """The lines kept after `count` was `mark`."""
        return [line for _, line in self._after(mark)]

    def errors(self, mark: int = 0) -> list[str]:
        """The errors among the lines since `mark`."""
        return [line for level, line in self._after(mark) if level == self._ERROR]

    def reason(self, mark: int) -> str:
        """Why llama.cpp refused: its first error since `mark`; later ones only pass it on."""
        return next(iter(self.errors(mark)), "it gave no reason")

    def _after(self, mark: int) -> list[tuple[int, str]]:
        lines = list(self._lines)
        return lines[max(0, len(lines) - (self.count - mark)) :]


log = Log()


def last_error() -> str | None:
    """The last error that llama.cpp logged in this process, if any."""
    errors = log.errors()
    return errors[-1] if errors else None


@cache
def require() -> Any:
    """llama-cpp-python's bindings: the pinned version, its structs those of the library.

    Raises:
        EngineError: it is missing, broken or of another version, or ggml is loaded twice.
    """
    ggml.check_version()
    try:
        bindings = _bindings()
    except (AttributeError, ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"llama-cpp-python does not load ({error}): {INSTALL}") from error
    check_defaults(bindings.llama_model_default_params(), _MODEL_DEFAULTS)
    check_defaults(bindings.llama_context_default_params(), _CONTEXT_DEFAULTS)
    bindings.llama_log_set(_callback(bindings), None)
    function("ggml_set_abort_callback")(_abort_callback())
    bindings.llama_backend_init()
    check_single_copies()
    return bindings


def _bindings() -> Any:
    """The module of llama.cpp's functions alone. Raises what importing it raises.

    The package around it brings an engine and much else, and takes longer to import than all that
    is needed here; it is left as it was, for whoever wants it.
    """
    package = sys.modules.get("llama_cpp")
    if package is None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None:
            raise ImportError("there is no module llama_cpp")
        sys.modules["llama_cpp"] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    finally:
        if package is None:
            del sys.modules["llama_cpp"]


@cache  # C holds the address alone, so the object must outlive every call
def _callback(bindings: Any) -> Any:
    return bindings.llama_log_callback(log.take)


@cache
def _abort_callback() -> Any:
    return ctypes.CFUNCTYPE(None, _text)(_last_words)


def _last_words(message: bytes) -> None:
    """Say why ggml is about to end the process, in place of its own words and a debugger's."""
    place, _, said = message.decode(errors="replace").partition(": ")
    given_up(printable(f"{said} ({place.rpartition('/')[2]})"))


def check_defaults(params: Any, wanted: dict[str, Any]) -> None:
    """Raise EngineError unless the library filled the fields of `params` with what is known."""
    for name, value in wanted.items():
        found = getattr(params, name, "nothing")
        if found != value:
            raise EngineError(
                f"llama.cpp's {type(params).__name__}.{name} is {found} by default, wanted {value}:"
                f" its libraries are not those of llama-cpp-python {PINNED}: {INSTALL}"
            )


def mapped_copies(maps: str) -> dict[str, set[str]]:
    """The files that each ggml library is mapped from, given the text of /proc/self/maps."""
    copies: dict[str, set[str]] = {}
    for match in re.finditer(r"(/\S.*/lib(ggml[a-z-]*)\.so\S*)$", maps, re.MULTILINE):
        copies.setdefault(match[2], set()).add(match[1])
    return copies


def check_single_copies() -> None:
    """Raise EngineError if a ggml library is loaded from two files (known on Linux only).

    The second copy has a registry of its own: backends and devices in it do not exist for
    llama.cpp, which then silently runs on the CPU.
    """
    maps = Path("/proc/self/maps")
    for name, files in mapped_copies(maps.read_text() if maps.is_file() else "").items():
        if len(files) > 1:
            raise EngineError(
                f"{name} is loaded from {len(files)} files ({', '.join(sorted(files))}), wanted "
                "one: load ggml's libraries with gemcut.ggml.library only"
            )


@cache
def function(name: str) -> Any:
    """A function of the ggml libraries, typed. Raises EngineError if this build has none."""
    place, result, arguments = _GGML[name]
    try:
        found = ggml.library(place)[name]
    except AttributeError:
        raise EngineError(f"the {place} library has no {name}: {INSTALL}") from None
    found.restype, found.argtypes = result, arguments
    return found
