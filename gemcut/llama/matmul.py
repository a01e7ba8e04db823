"""Products of matrices and vectors on one device, timed: what weights cost, without a model.

Through ggml's own backends, so the kernels are those that llama.cpp would use. Weights lie in a
`Buffer` that is filled once, with bytes that are valid blocks of every type; steps go round in it,
so that no step finds in a cache what an earlier one left there.
"""

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from gemcut import ggml
from gemcut.closing import Closing
from gemcut.errors import EngineError
from gemcut.llama.backend import Backend, Buffer, read_number
from gemcut.llama.library import Room, function

_F32, _I32 = 0, 26  # enum ggml_type
_MOST = 1 << 20  # matrices, rows, columns or vectors: a bound far above any model's


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
        memory: Buffer,
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
        read_number(result)
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
        read_number(self._last)
        if code:
            raise EngineError(f"{self.backend.name} did not add: code {code}")
        return self.backend.clock() - begun

    def close(self) -> None:
        """Free everything. Closing again does nothing."""
        self._open.close()
