"""A device that computes, and memory for weights on it, through ggml's own backends."""

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray

from gemcut.cores import default_threads
from gemcut.engine import MAX_THREADS
from gemcut.errors import EngineError
from gemcut.llama.devices import buffer_type, device_handle
from gemcut.llama.library import Room, function, log, require
from gemcut.llama.owner import Owner

_I8 = 24  # enum ggml_type
_CHUNK = 1 << 20  # random bytes that fill a buffer, again and again
_SET_THREADS = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)
_EXTRA_TYPES = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)


@cache
def _tells_a_step() -> bool:
    """Whether seconds of the processor grow by less than 2 ms: Windows counts them by 16."""
    began, until = process_time(), perf_counter() + 2e-3
    while not (grown := process_time() - began) and perf_counter() < until:
        pass
    return 0 < grown < 2e-3


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
        if not 1 <= threads <= MAX_THREADS:
            raise EngineError(f"{threads} threads, wanted 1 or more, {MAX_THREADS} at most")
        self.clock: Callable[[], float] = perf_counter
        if address := self._extension("ggml_backend_set_n_threads"):
            _SET_THREADS(address)(self.handle, threads)
            # One thread's own seconds, in which no other program has a share.
            self.clock = process_time if threads == 1 and _tells_a_step() else perf_counter

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

    def allocate(self, opened: ExitStack, context: int, trouble: str) -> None:
        """Give the tensors that a context of ggml's describes memory, until `opened` closes.

        Raises EngineError, with the trouble, if there is none.
        """
        buffer = function("ggml_backend_alloc_ctx_tensors")(context, self.handle)
        if not buffer:
            raise EngineError(trouble)
        opened.callback(function("ggml_backend_buffer_free"), buffer)

    def compute(self, graph: int, last: int, what: str) -> float:
        """Seconds until the last result of a graph can be read.

        Raises EngineError if the device did not do it, which is called `what`.
        """
        begun = self.clock()
        code = function("ggml_backend_graph_compute")(self.handle, graph)
        read_number(last)
        if code:
            raise EngineError(f"{self.name} did not {what}: code {code}")
        return self.clock() - begun

    def _extension(self, name: str) -> int | None:
        registry = function("ggml_backend_dev_backend_reg")(self.device)
        address: int | None = function("ggml_backend_reg_get_proc_address")(registry, name.encode())
        return address


class Buffer(Owner):
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
        with ExitStack() as opened:
            context = describing(opened, function("ggml_tensor_overhead")())
            tensor = function("ggml_new_tensor_2d")(context, _I8, size, 1)
            function("ggml_backend_tensor_alloc")(self.handle, tensor, self._base + start)
            function("ggml_backend_tensor_set")(tensor, address, 0, size)
            read_number(tensor)


def _buffer(kind: int, size: int, trouble: str) -> int:
    """Memory of a kind. Raises EngineError, which begins with the trouble."""
    mark, most = log.count, function("ggml_backend_buft_get_max_size")(kind)
    if not 0 < size <= most:
        raise EngineError(f"{trouble}: wanted 1 to {most}")
    handle = function("ggml_backend_buft_alloc_buffer")(kind, size)
    if not handle:
        raise EngineError(f"{trouble}: {log.reason(mark)}")
    return int(handle)


def describing(opened: ExitStack, size: int) -> int:
    """A context of ggml's: room to describe tensors and graphs in, until `opened` closes.

    Raises EngineError if there is no memory for it.
    """
    context: int | None = function("ggml_init")(Room(size, None, True))
    if not context:
        raise EngineError(f"no {size} bytes of memory to describe tensors in")
    opened.callback(function("ggml_free"), context)
    return context


def read_number(tensor: int) -> None:
    """Read four bytes of a tensor: that waits for devices that only queue what they are told."""
    number = np.empty(1, np.float32)
    function("ggml_backend_tensor_get")(tensor, number.ctypes.data, 0, number.nbytes)


def _valid_bytes(size: int) -> NDArray[np.uint8]:
    """Random bytes that are valid blocks of every type, wherever a block begins.

    A scale is a float of 8, 16 or 32 bits: with bit 6 of each byte clear and bit 5 set, it is
    neither infinite nor so small that a CPU becomes slow. Codes may be anything.
    """
    return np.random.default_rng(0).integers(0, 256, size, np.uint8) & np.uint8(0x9F) | np.uint8(32)
