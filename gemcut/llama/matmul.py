"""Products of matrices and vectors on one device, timed: what weights cost, without a model.

Weights lie in a `Buffer`, in which `Steps` go round. And sums, which have no weights.
"""

from contextlib import ExitStack

import numpy as np

from gemcut import ggml
from gemcut.closing import Closing
from gemcut.errors import EngineError
from gemcut.llama.backend import Backend, Buffer, describing
from gemcut.llama.library import function
from gemcut.llama.steps import Steps

_F32, _I32 = 0, 26  # enum ggml_type
_MOST = 1 << 20  # matrices, rows, columns or vectors: a bound far above any model's


class Products(Steps):
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
        self._shape, self._count, self._batch, self._used = shape, count, batch, used
        read, flops = count * rows * kind.row_bytes(columns), 2 * batch * count * rows * columns
        super().__init__(memory, kind, "multiply", read, flops, 1 if batch > 1 else _MOST)

    def _sizes(self) -> tuple[int, int, int]:
        products = self._count // (self._used or 1)
        placed = 1 if self._used else self._count
        return placed, placed + 2 * products + 4, products + 1

    def _shapes(self) -> list[tuple[int, int, int]]:
        rows, columns = self._shape
        if self._used:
            return [(columns, rows, self._count)]
        return [(columns, rows, 1)] * self._count

    def _prepare(self) -> None:
        """Vectors; and for each product of experts, whom it takes: int32 [batch, used]."""
        batch, used, columns = self._batch, self._used, self._shape[1]
        shape = (batch, 1, columns) if used else (1, batch, columns)
        self._vectors = int(function("ggml_new_tensor_3d")(self._rest, _F32, *reversed(shape)))
        self._inputs.append((self._vectors, np.ones(shape, np.float32)))
        self._chosen: list[int] = []
        ids = np.arange(self._count, dtype=np.int32).reshape(-1, 1, used) if used else ()
        for each in ids:
            tensor = int(function("ggml_new_tensor_2d")(self._rest, _I32, used, batch))
            self._chosen.append(tensor)
            self._inputs.append((tensor, np.repeat(each, batch, axis=0)))

    def _graph(self, tensors: list[int], graph: int) -> int:
        one, many = function("ggml_mul_mat"), function("ggml_mul_mat_id")
        results = [many(self._rest, tensors[0], self._vectors, ids) for ids in self._chosen] or [
            one(self._rest, matrix, self._vectors) for matrix in tensors
        ]
        for result in results:
            function("ggml_build_forward_expand")(graph, result)
        return int(results[-1])


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
        self.backend = backend
        tensors, graph = function("ggml_tensor_overhead")(), function("ggml_graph_overhead_custom")
        size = (count + 1) * tensors + graph(count + 4, False)
        with ExitStack() as opened:
            context = describing(opened, size)
            self._graph = function("ggml_new_graph_custom")(context, count + 4, False)
            first = self._last = function("ggml_new_tensor_2d")(context, _F32, width, 1)
            for _ in range(count):
                self._last = function("ggml_add")(context, self._last, first)
            function("ggml_build_forward_expand")(self._graph, self._last)
            backend.allocate(opened, context, f"{backend.name} has no memory left for sums")
            self._open = opened.pop_all()
        zeros = np.zeros(width, np.float32)
        function("ggml_backend_tensor_set")(first, zeros.ctypes.data, 0, zeros.nbytes)

    def step(self) -> float:
        """Add; seconds until the result can be read. Raises EngineError if the device does not."""
        return self.backend.compute(self._graph, self._last, "add")

    def close(self) -> None:
        """Free everything. Closing again does nothing."""
        self._open.close()
