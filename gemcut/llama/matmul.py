"""Products of matrices and vectors on one device, timed: what weights cost, without a model.

Through ggml's own backends, so the kernels are those that llama.cpp would use. Weights lie in a
`Memory` that is filled once, with bytes that are valid blocks of every type; steps go round in it,
so that no step finds in a cache what an earlier one left there.
"""

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray

from gemcut import ggml
from gemcut.closing import Closing
from gemcut.engine import default_threads
from gemcut.errors import EngineError
from gemcut.llama.devices import buffer_type, device_handle
from gemcut.llama.library import Room, function, log, require
from gemcut.llama.owner import Owner

_F32, _I8, _I32 = 0, 24, 26  # enum ggml_type
_CHUNK = 1 << 20  # random bytes that fill a memory, again and again
_MOST = 1 << 20  # matrices, rows, columns or vectors: a bound far above any model's
_SET_THREADS = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)
_EXTRA_TYPES = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)


class Backend(Owner):
    """A device that computes. Raises EngineError for one that llama.cpp does not have.

    Args:
        threads: of a CPU; other devices have none to set.
    """

    def __init__(self, device: str = "CPU", threads: int | None = None) -> None:
        require()
        self.name, self.device, mark = device, device_handle(device), log.count
        handle = function("ggml_backend_dev_init")(self.device, None)
        if not handle:
            raise EngineError(f"{device} does not start: {log.reason(mark)}")
        super().__init__(f"backend of {device}", handle, function("ggml_backend_free"))
        self.set_threads(threads or default_threads())

    def set_threads(self, threads: int) -> None:
        """Compute with so many from now on; a device that has no threads ignores it."""
        if threads < 1:
            raise EngineError(f"{threads} threads, wanted 1 or more")
        self.clock: Callable[[], float] = perf_counter
        if address := self._extension("ggml_backend_set_n_threads"):
            _SET_THREADS(address)(self.handle, threads)
            # One thread's own seconds, in which no other program has a share.
            self.clock = process_time if threads == 1 else perf_counter

    def layouts(self) -> list[int]:
        """Kinds of memory for weights in the order that llama.cpp tries them, the plain one last.

        A CPU rearranges the weights of some types for its kernels, where no card reads them, too.
        """
        found: list[int] = []
        if address := self._extension("ggml_backend_dev_get_extra_bufts"):
            extra = _EXTRA_TYPES(address)(self.device)
            while len(found) < 16 and (kind := extra[len(found)]):
                found.append(int(kind))
        return [*found, buffer_type(self.name)]

    def _extension(self, name: str) -> int | None:
        registry = function("ggml_backend_dev_backend_reg")(self.device)
        address: int | None = function("ggml_backend_reg_get_proc_address")(registry, name.encode())
        return address


class Memory(Owner):
    """Memory for weights on a backend's device, full of them. Close it before the backend.

    Args:
        size: bytes.
        layout: one of the backend's `layouts`; None: the plain one.

    Raises:
        EngineError: the device has not so much, or the backend is closed.
    """

    def __init__(self, backend: Backend, size: int, layout: int | None = None) -> None:
        self.backend, self.size, plain = backend, size, buffer_type(backend.name)
        trouble = f"{backend.name} has no {size} bytes for weights"
        handle = backend.handle and _buffer(layout or plain, size, trouble)
        super().__init__(f"memory of {backend.name}", handle, function("ggml_backend_buffer_free"))
        self._base, self._taken = int(function("ggml_backend_buffer_get_base")(handle)), 0
        chunk = _valid_bytes(min(size, _CHUNK))
        for start in range(0, size, _CHUNK):
            part = chunk[: size - start]
            if layout in (None, plain):
                self._write(part.ctypes.data, start, part.size)
            else:  # memory of the host, which would be rearranged if written through ggml
                ctypes.memmove(self._base + start, part.ctypes.data, part.size)

    def copy(self, size: int) -> float:
        """Copy so many bytes from the host's memory, pinned if the device offers that; seconds."""
        size, pinned = min(size, self.size), function("ggml_backend_dev_host_buffer_type")
        kind = pinned(self.backend.device) or buffer_type("CPU")
        source = _buffer(kind, size, f"the host has no {size} bytes to copy")
        try:
            address = function("ggml_backend_buffer_get_base")(source)
            ctypes.memset(address, 42, size)  # valid weights; and all its pages are there then
            begun = perf_counter()
            self._write(address, 0, size)
            return perf_counter() - begun
        finally:
            function("ggml_backend_buffer_free")(source)

    def clear(self) -> None:
        """Forget what was placed in it: the next tensor starts at its beginning."""
        self._taken = 0

    def place(self, tensor: int) -> bool:
        """Give a tensor of ggml's the next free place; whether there was room."""
        alignment = function("ggml_backend_buffer_get_alignment")(self.handle)
        start = -(-self._taken // alignment) * alignment
        end = start + function("ggml_backend_buffer_get_alloc_size")(self.handle, tensor)
        if end > self.size:
            return False
        function("ggml_backend_tensor_alloc")(self.handle, tensor, self._base + start)
        self._taken = end
        return True

    def _write(self, address: int, start: int, size: int) -> None:
        context = function("ggml_init")(Room(function("ggml_tensor_overhead")(), None, True))
        try:
            tensor = function("ggml_new_tensor_2d")(context, _I8, size, 1)
            function("ggml_backend_tensor_alloc")(self.handle, tensor, self._base + start)
            function("ggml_backend_tensor_set")(tensor, address, 0, size)
            _read_number(tensor)
        finally:
            function("ggml_free")(context)


class Products(Closing):
    """Matrices of one type, as many as a memory holds, multiplied with vectors step by step.

    Without `used`, a step multiplies `count` matrices one by one. With it, they are the experts of
    one tensor, and each product takes `used` of them, until the step has taken all.

    Args:
        shape: rows and columns of a matrix.
        count: matrices of a step.
        batch: vectors that each is multiplied with. Of more than one, all steps are the same.

    Raises:
        EngineError: a size that makes no sense, or memory for not one step.
    """

    def __init__(
        self,
        memory: Memory,
        kind: ggml.Type,
        shape: tuple[int, int],
        count: int = 1,
        batch: int = 1,
        used: int = 0,
    ) -> None:
        rows, columns = shape
        sane = all(0 < n < _MOST for n in (rows, columns, count, batch)) and used >= 0
        if not sane or count % (used or 1) or not kind.fits(columns):
            raise EngineError(f"no products of {kind}: {shape=}, {count=}, {batch=}, {used=}")
        self.backend, self._memory, self._kind, self._shape = memory.backend, memory, kind, shape
        self._count, self._batch, self._used, self._turn = count, batch, used, 0
        self.step_bytes = count * rows * kind.row_bytes(columns)
        self.step_flops = 2 * batch * count * rows * columns
        self._open = ExitStack()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        memory, self._products = self._memory, self._count // (self._used or 1)
        most = min(memory.size // self.step_bytes, 1 if self._batch > 1 else _MOST)
        overhead = function("ggml_graph_overhead_custom")(self._products + 4, False)
        tensors = function("ggml_tensor_overhead")()
        self._weights = self._context(most * self._count * tensors)
        size = most * (self._products * tensors + overhead) + (self._products + 1) * tensors
        self._rest = self._context(size)
        self._inputs: list[tuple[int, NDArray[np.generic]]] = []
        vectors, chosen = self._vectors(), self._chosen()
        memory.clear()
        self._steps: list[tuple[int, int]] = []  # graph and last result
        while len(self._steps) < most and (matrices := self._matrices()):
            self._steps.append(self._graph(matrices, vectors, chosen))
        if not self._steps:
            raise EngineError(f"{memory.size} bytes: too few for {self.step_bytes} and alignment")
        supports, last = function("ggml_backend_dev_supports_op"), self._steps[0][1]
        self.supported = bool(supports(self.backend.device, last))
        if self.supported:
            self._fill()

    def _context(self, size: int) -> int:
        context: int | None = function("ggml_init")(Room(size, None, True))
        if not context:
            raise EngineError(f"no {size} bytes of memory to describe products in")
        self._open.callback(function("ggml_free"), context)
        return context

    def _vectors(self) -> int:
        batch, columns = self._batch, self._shape[1]
        shape = (batch, 1, columns) if self._used else (1, batch, columns)
        tensor = int(function("ggml_new_tensor_3d")(self._rest, _F32, *reversed(shape)))
        self._inputs.append((tensor, np.ones(shape, np.float32)))
        return tensor

    def _chosen(self) -> list[int]:
        """For each product of experts, whom it takes: int32 [batch, used]."""
        if not self._used:
            return []
        ids = np.arange(self._count, dtype=np.int32).reshape(-1, 1, self._used)
        new, found = function("ggml_new_tensor_2d"), []
        for each in ids:
            found.append(int(new(self._rest, _I32, self._used, self._batch)))
            self._inputs.append((found[-1], np.repeat(each, self._batch, axis=0)))
        return found

    def _matrices(self) -> list[int]:
        """The next step's weights; none if the memory is full."""
        (rows, columns), kind = self._shape, self._kind.id
        experts, tensors = (self._count, 1) if self._used else (1, self._count)
        new = function("ggml_new_tensor_3d")
        made = [int(new(self._weights, kind, columns, rows, experts)) for _ in range(tensors)]
        return made if all(map(self._memory.place, made)) else []

    def _graph(self, matrices: list[int], vectors: int, chosen: list[int]) -> tuple[int, int]:
        graph = function("ggml_new_graph_custom")(self._rest, self._products + 4, False)
        one, many = function("ggml_mul_mat"), function("ggml_mul_mat_id")
        results = [many(self._rest, matrices[0], vectors, ids) for ids in chosen] or [
            one(self._rest, matrix, vectors) for matrix in matrices
        ]
        for result in results:
            function("ggml_build_forward_expand")(graph, result)
        return graph, results[-1]

    def _fill(self) -> None:
        backend = self.backend
        buffer = function("ggml_backend_alloc_ctx_tensors")(self._rest, backend.handle)
        if not buffer:
            raise EngineError(f"{backend.name} has no memory left for the results of products")
        self._open.callback(function("ggml_backend_buffer_free"), buffer)
        for tensor, values in self._inputs:
            function("ggml_backend_tensor_set")(tensor, values.ctypes.data, 0, values.nbytes)

    def step(self) -> float:
        """Multiply the next matrices; seconds until the result can be read.

        Raises EngineError if the device does not multiply this type in this memory's layout.
        """
        backend = self.backend
        if not self.supported:
            raise EngineError(f"{backend.name} does not multiply {self._kind} in this layout")
        graph, result = self._steps[self._turn % len(self._steps)]
        self._turn += 1
        begun = backend.clock()
        code = function("ggml_backend_graph_compute")(backend.handle, graph)
        _read_number(result)
        if code:
            raise EngineError(f"{backend.name} did not multiply {self._kind}: code {code}")
        return backend.clock() - begun

    def close(self) -> None:
        """Free what describes the products, and their results; the memory stays."""
        self._open.close()


class Sums(Closing):
    """Additions of a vector, one after the other: what operations cost that are no products.

    Args:
        count: additions of a step.
        width: numbers of the vector.

    Raises:
        EngineError: a size that makes no sense, or no memory.
    """

    def __init__(self, backend: Backend, count: int, width: int = 2048) -> None:
        if not (0 < count < _MOST and 0 < width < _MOST):
            raise EngineError(f"no sums: {count=}, {width=}")
        self.backend, self._open = backend, ExitStack()
        tensors, graph = function("ggml_tensor_overhead")(), function("ggml_graph_overhead_custom")
        size = (count + 1) * tensors + graph(count + 4, False)
        context = function("ggml_init")(Room(size, None, True))
        self._open.callback(function("ggml_free"), context)
        self._graph = function("ggml_new_graph_custom")(context, count + 4, False)
        first = self._last = function("ggml_new_tensor_2d")(context, _F32, width, 1)
        for _ in range(count):
            self._last = function("ggml_add")(context, self._last, first)
        function("ggml_build_forward_expand")(self._graph, self._last)
        buffer = function("ggml_backend_alloc_ctx_tensors")(context, backend.handle)
        if not buffer:
            self.close()
            raise EngineError(f"{backend.name} has no memory left for sums")
        self._open.callback(function("ggml_backend_buffer_free"), buffer)
        zeros = np.zeros(width, np.float32)
        function("ggml_backend_tensor_set")(first, zeros.ctypes.data, 0, zeros.nbytes)

    def step(self) -> float:
        """Add; seconds until the result can be read. Raises EngineError if the device does not."""
        begun = self.backend.clock()
        code = function("ggml_backend_graph_compute")(self.backend.handle, self._graph)
        _read_number(self._last)
        if code:
            raise EngineError(f"{self.backend.name} did not add: code {code}")
        return self.backend.clock() - begun

    def close(self) -> None:
        """Free everything. Closing again does nothing."""
        self._open.close()


def _buffer(kind: int, size: int, trouble: str) -> int:
    """Memory of a kind. Raises EngineError, which begins with the trouble."""
    mark, most = log.count, function("ggml_backend_buft_get_max_size")(kind)
    if not 0 < size <= most:
        raise EngineError(f"{trouble}: wanted 1 to {most}")
    handle = function("ggml_backend_buft_alloc_buffer")(kind, size)
    if not handle:
        raise EngineError(f"{trouble}: {log.reason(mark)}")
    return int(handle)


def _read_number(tensor: int) -> None:
    """Read four bytes of a tensor: that waits for devices that only queue what they are told."""
    number = np.empty(1, np.float32)
    function("ggml_backend_tensor_get")(tensor, number.ctypes.data, 0, number.nbytes)


def _valid_bytes(size: int) -> NDArray[np.uint8]:
    """Random bytes that are valid blocks of every type, wherever a block begins.

    A scale is a float of 8, 16 or 32 bits: with bit 6 of each byte clear and bit 5 set, it is
    neither infinite nor so small that a CPU becomes slow. Codes may be anything.
    """
    return np.random.default_rng(0).integers(0, 256, size, np.uint8) & np.uint8(0x9F) | np.uint8(32)
