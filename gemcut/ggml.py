"""The C boundary to ggml: types with their block sizes, encoding and decoding of rows.

Numpy arrays and `Type` in and out; nothing here knows files, plans or models. The functions are
those of `ggml.h` in the ggml-base library that llama-cpp-python carries. Calls release the GIL,
so rows can be encoded in a thread pool.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemcut.engine import INSTALL, PINNED
from gemcut.errors import EngineError, PlanError

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Type:
    """A ggml type: `block` weights are stored in `size` bytes."""

    id: int
    name: str  # lower case, as in "q4_k"
    block: int
    size: int
    quantized: bool

    @property
    def bpw(self) -> float:
        """Bits per weight."""
        return 8 * self.size / self.block

    def fits(self, columns: int) -> bool:
        """Whether rows of this length divide into whole blocks."""
        return columns % self.block == 0

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row. Raises PlanError if the row does not divide into blocks."""
        if not self.fits(columns):
            raise PlanError(
                f"rows of {columns} do not divide into {self.name}'s blocks of {self.block}"
            )
        return columns // self.block * self.size

    def __str__(self) -> str:
        return self.name


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h; compared with the library's own accessors before use."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    ]


_ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)

_API = {
    "ggml_blck_size": (ctypes.c_int64, [ctypes.c_int]),
    "ggml_type_size": (ctypes.c_size_t, [ctypes.c_int]),
    "ggml_type_name": (ctypes.c_char_p, [ctypes.c_int]),
    "ggml_is_quantized": (ctypes.c_bool, [ctypes.c_int]),
    "ggml_get_type_traits": (ctypes.POINTER(_Traits), [ctypes.c_int]),
    "ggml_quantize_requires_imatrix": (ctypes.c_bool, [ctypes.c_int]),
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p],
    ),
    "ggml_validate_row_data": (ctypes.c_bool, [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]),
}

_MISSING = f"llama-cpp-python is not installed: {INSTALL}"

# GGML_TYPE_COUNT of the pinned version; ggml aborts the process for a number past its end.
_TYPE_COUNT = 43

# Some of ggml's quantizers end the process where float32 overflows, and they square sums of
# weights times importance. No sane model comes near.
_LARGEST = 1e12

# The float types' bits: where all of these are set, the value is NaN or infinite.
_EXPONENTS = {"f32": ("<u4", 0x7F800000), "f16": ("<u2", 0x7C00), "bf16": ("<u2", 0x7F80)}
_NOT_STORED = {"q8_1", "q8_k"}  # the formats that activations take inside a dot product
_CARRIED = {"i8", "i16", "i32", "i64", "f64"}  # in files, and never made of weights


def library_folder() -> Path:
    """Where llama-cpp-python keeps its libraries, found without importing it.

    Raises:
        EngineError: llama-cpp-python is not installed.
    """
    if override := os.environ.get("LLAMA_CPP_LIB_PATH"):
        return Path(override)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise EngineError(_MISSING)
    return Path(spec.origin).parent / "lib"


@cache
def library(name: str) -> ctypes.CDLL:
    """Load one of ggml's libraries ("ggml-base", "ggml-rpc", ...), the copy that libllama uses.

    A wheel holds copies where a build holds links: `libggml.so` and `libggml.so.0` are two files,
    and loading the wrong one makes a second, silently ignored registry of backends. libllama asks
    for the name with the version, so that one comes first.
    """
    folder = library_folder()
    names = [f"lib{name}.so.0", f"lib{name}.0.dylib", f"lib{name}.dylib", f"lib{name}.so"]
    for candidate in [*names, f"{name}.dll", f"lib{name}.dll"]:
        if (folder / candidate).exists():
            return ctypes.CDLL(str(folder / candidate))
    raise EngineError(
        f"{folder} has no {name} library: this llama-cpp-python was built without it; "
        "`gemcut doctor` says how to build one that has it"
    )


def check_version() -> None:
    """Raises EngineError unless the installed llama-cpp-python is the pinned one."""
    try:
        found = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        raise EngineError(_MISSING) from None
    if found != PINNED:
        raise EngineError(f"llama-cpp-python is {found}, wanted exactly {PINNED}: {INSTALL}")


@cache
def _ggml() -> ctypes.CDLL:
    check_version()
    lib = library("ggml-base")
    for name, (result, arguments) in _API.items():
        function = getattr(lib, name, None)
        if function is None:
            raise EngineError(f"ggml has no {name}: is llama-cpp-python of another version?")
        function.restype, function.argtypes = result, arguments
    traits = lib.ggml_get_type_traits(2).contents  # q4_0
    seen = (traits.type_name, traits.blck_size, traits.type_size, traits.is_quantized)
    if seen != (b"q4_0", lib.ggml_blck_size(2), lib.ggml_type_size(2), True):
        raise EngineError("ggml's type table has another layout: is llama-cpp-python too new?")
    return lib


@cache
def _stored() -> dict[str, Type]:
    """Every ggml type that a file may hold, by lower-case name."""
    lib, found = _ggml(), {}
    for number in range(_TYPE_COUNT):
        raw = lib.ggml_type_name(number)
        name = raw.decode().lower() if raw else ""
        block, size = lib.ggml_blck_size(number), lib.ggml_type_size(number)
        if name and block and size and name not in _NOT_STORED:
            found[name] = Type(number, name, block, size, bool(lib.ggml_is_quantized(number)))
    return found


@cache
def types() -> dict[str, Type]:
    """Every ggml type that weights can have, by lower-case name."""
    return {name: kind for name, kind in _stored().items() if name not in _CARRIED}


def type_named(name: str) -> Type:
    """The type of a name in any case. Raises PlanError for a name that ggml does not have."""
    try:
        return _stored()[name.lower()]
    except KeyError:
        known = ", ".join(sorted(types()))
        raise PlanError(f"unknown type {name!r}; ggml has {known}") from None


def type_with_id(number: int) -> Type | None:
    """The type with ggml's number, or None if it is none that a file may hold."""
    return _numbered().get(number)


@cache
def _numbered() -> dict[int, Type]:
    """Files with types per expert have tens of thousands of tensors, each with a number."""
    return {kind.id: kind for kind in _stored().values()}


def needs_importance(kind: Type) -> bool:
    """Whether ggml refuses to encode this type without an importance for every column."""
    return bool(_ggml().ggml_quantize_requires_imatrix(kind.id))


def is_finite(kind: Type, rows: Bytes) -> bool:
    """Whether encoded rows [n, row_bytes] hold neither NaN nor infinities."""
    if kind.name not in _EXPONENTS:
        return bool(_ggml().ggml_validate_row_data(kind.id, rows.ctypes.data, rows.nbytes))
    integer, exponent = _EXPONENTS[kind.name]
    return bool((rows.view(integer) & exponent).max(initial=0) < exponent)


def quantize(
    kind: Type, rows: Floats, importance: Floats | None = None, nonfinite: bool = False
) -> Bytes:
    """Encode float32 rows [n, columns] into bytes [n, row_bytes] with ggml's own quantizer.

    Args:
        nonfinite: let NaN and infinities pass into types that can hold them.
        importance: a non-negative weight for every column, or None for an unweighted fit.

    Raises:
        PlanError: the row length does not fit the type, or the importance is missing where it is
            needed, of another shape, negative or not finite.
        EngineError: the weights are NaN, infinite or absurdly large, or ggml wrote something else
            than whole, valid rows.
    """
    if kind.name in _CARRIED:
        raise PlanError(f"{kind} is no type for weights")
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    count, columns = rows.shape
    out = np.empty((count, kind.row_bytes(columns)), np.uint8)
    weights = _checked_importance(kind, importance, columns)
    most = _LARGEST if kind.quantized else np.inf
    if (kind.quantized or not nonfinite) and not _within(rows, most):
        raise EngineError("the weights hold NaN, infinite or huge values: is the source damaged?")
    if kind.name == "f32":
        return rows.view(np.uint8)
    written = _ggml().ggml_quantize_chunk(
        kind.id,
        rows.ctypes.data,
        out.ctypes.data,
        0,
        count,
        columns,
        None if weights is None else weights.ctypes.data,
    )
    if written != out.nbytes:
        raise EngineError(f"ggml wrote {written} bytes of {kind.name}, wanted {out.nbytes}")
    if not nonfinite and not is_finite(kind, out):
        raise EngineError(f"{kind.name}: not finite after encoding: the weights are too large")
    return out


def _within(rows: Floats, most: float) -> bool:
    """Whether all are smaller than that, and numbers: a NaN is its own largest and smallest."""
    return bool(rows.max(initial=0) < most and rows.min(initial=0) > -most)


def _checked_importance(kind: Type, importance: Floats | None, columns: int) -> Floats | None:
    if importance is None:
        if needs_importance(kind):
            raise PlanError(f"{kind.name} needs an importance matrix: give one, or take q2_k")
        return None
    weights = np.ascontiguousarray(importance, dtype=np.float32)
    if weights.shape != (columns,):
        raise PlanError(f"importance has shape {weights.shape}, wanted ({columns},)")
    if not ((weights >= 0) & (weights < _LARGEST)).all():
        raise PlanError(f"an importance is negative, no number, or larger than {_LARGEST:g}")
    return weights


def dequantize(kind: Type, data: Bytes, columns: int) -> Floats:
    """Decode bytes [n, row_bytes] into float32 rows [n, columns].

    Raises:
        PlanError: the bytes are not whole rows of this type and length.
    """
    data = np.ascontiguousarray(data, dtype=np.uint8)
    if data.shape[-1] != kind.row_bytes(columns):
        raise PlanError(
            f"{kind.name}: rows of {data.shape[-1]} bytes, wanted {kind.row_bytes(columns)}"
        )
    if kind.name == "f32":
        return data.view(np.float32)
    to_float = _ggml().ggml_get_type_traits(kind.id).contents.to_float
    if not to_float:
        raise EngineError(f"ggml cannot decode {kind.name}")
    out = np.empty((data.shape[0], columns), np.float32)
    _ToFloat(to_float)(data.ctypes.data, out.ctypes.data, out.size)
    return out
