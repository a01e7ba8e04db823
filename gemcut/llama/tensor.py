"""A tensor at work: what the evaluation callback of a context is shown."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemcut import ggml
from gemcut.engine import INSTALL
from gemcut.errors import EngineError
from gemcut.llama.library import function

_NUMBERS = {0: np.float32, 1: np.float16, 24: np.int8, 25: np.int16, 26: np.int32, 27: np.int64}
# Buffers whose bytes are not the type's.
_OWN_LAYOUT = ("CPU_REPACK", "CPU_KLEIDIAI", "AMX", "CPU_EXPERTS")
_MAX_SRC = 10


class _Struct(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h up to its name; see `_check`."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * _MAX_SRC),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


def check_layout() -> None:
    """Raise EngineError if ggml's tensors are laid out in another way than read here."""
    struct = _Struct(type=0, ne=(3, 5, 7, 2), nb=(4, 16, 128, 1024))
    base = ctypes.addressof(struct)
    span = 4 + 2 * 4 + 4 * 16 + 6 * 128 + 1024
    offset = function("ggml_get_name")(base) - base
    if (function("ggml_nbytes")(base), offset) != (span, _Struct.name.offset):
        raise EngineError(f"ggml's tensors have another layout than expected: {INSTALL}")


class Tensor:
    """A tensor of a running graph.

    Values may be read during the callback it was passed to. A weight (a source whose name ends in
    ".weight") stays where it is for as long as its model is open.
    """

    def __init__(self, address: int) -> None:
        self._address = address
        self._struct = _Struct.from_address(address)

    def __eq__(self, other: object) -> bool:
        """Whether both are one tensor of llama.cpp's."""
        return isinstance(other, Tensor) and other._address == self._address

    def __hash__(self) -> int:
        return hash(self._address)

    @property
    def name(self) -> str:
        """llama.cpp's name, as "ffn_moe_gate-3" for a result or "blk.3.ffn_norm.weight"."""
        return bytes(self._struct.name).decode(errors="replace")

    @property
    def op(self) -> str:
        """The operation that computes it, as "MUL_MAT_ID"; "NONE" for weights and inputs."""
        return str(function("ggml_op_desc")(self._address).decode())

    @property
    def parameters(self) -> NDArray[np.int32]:
        """What its operation was told besides its sources: 16 words, floats among them as bits."""
        return np.array(self._struct.op_params, np.int32)

    @property
    def type_id(self) -> int:
        """The number of its ggml type."""
        return int(self._struct.type)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Four sizes, slowest first: ggml's `ne` reversed."""
        first, second, third, fourth = self._struct.ne
        return fourth, third, second, first

    @property
    def nbytes(self) -> int:
        """Bytes from its first to its last element, gaps of a view included."""
        return int(function("ggml_nbytes")(self._address))

    @property
    def buffer(self) -> str:
        """The memory it lies in, as "CPU", "CPU_Mapped" or "CUDA0"; "" for none."""
        owner = _Struct.from_address(self._struct.view_src or self._address)
        name = owner.buffer and function("ggml_backend_buffer_name")(owner.buffer)
        return name.decode() if name else ""

    @property
    def sources(self) -> list["Tensor"]:
        """What its operation reads, in order; a weight comes first."""
        return [Tensor(address) for address in self._struct.src if address]

    def read_bytes(self) -> NDArray[np.uint8]:
        """A copy of its bytes [nbytes].

        Raises:
            EngineError: it has no memory yet, or the CPU keeps it in a layout of its own.
        """
        self._check_plain()
        out = np.empty(self.nbytes, np.uint8)
        function("ggml_backend_tensor_get")(self._address, out.ctypes.data, 0, out.nbytes)
        return out

    def read(self) -> NDArray[Any]:
        """A copy of its values in its shape: numbers as they are, other types as float32.

        Raises:
            EngineError: as `read_bytes`, or a view of a block type with gaps.
        """
        data, dtype = self.read_bytes(), _NUMBERS.get(self.type_id)
        if dtype is not None:
            strides = tuple(reversed(self._struct.nb))
            return np.ndarray(self.shape, dtype, data.data, strides=strides)
        kind, columns = ggml.type_with_id(self.type_id), self.shape[-1]
        rows = int(np.prod(self.shape[:-1]))
        if kind is None or data.size != rows * kind.row_bytes(columns):
            raise EngineError(f"{self.name}: cannot read type {self.type_id} with gaps as numbers")
        return ggml.dequantize(kind, data.reshape(rows, -1), columns).reshape(self.shape)

    def write_bytes(self, data: NDArray[np.uint8], start: int | None = None) -> None:
        """Replace its bytes [nbytes], for instance a weight's between two decodes.

        Args:
            start: replace only a part, from this byte on.

        Raises:
            EngineError: another length, or memory that is read-only or in a layout of its own.
        """
        self._check_plain()
        data = np.ascontiguousarray(data, dtype=np.uint8)
        left = self.nbytes - (start or 0)
        if (start or 0) < 0 or (data.size != left if start is None else data.size > left):
            wanted = left if start is None else f"{left} at most from byte {start} on"
            raise EngineError(f"{self.name}: {data.size} bytes to write, wanted {wanted}")
        if self.buffer.endswith("_Mapped"):
            raise EngineError(f"{self.name} is mapped read-only: load with load_mode='none'")
        address, size = data.ctypes.data, data.nbytes
        function("ggml_backend_tensor_set")(self._address, address, start or 0, size)

    def _check_plain(self) -> None:
        if self.buffer in ("", *_OWN_LAYOUT):
            where = self.buffer or "no memory"
            raise EngineError(f"{self.name} lies in {where}: load with repack=False to reach it")
