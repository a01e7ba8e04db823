"""Work on what a `Buffer` holds, one part of it after the other, timed.

Through ggml's own backends, so the kernels are those that llama.cpp would use. The memory is filled
once, with bytes that are valid blocks of every type; steps go round in it, so that no step finds in
a cache what an earlier one left there.
"""

from abc import abstractmethod
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from gemcut import ggml
from gemcut.closing import Closing
from gemcut.errors import EngineError
from gemcut.llama.backend import Buffer, describing
from gemcut.llama.library import function


class Steps(Closing):
    """As many steps as a memory holds, at most so many.

    supported: whether the device does this with this type, and in this memory's layout.

    Args:
        kind: of what lies in the memory.
        doing: "multiply", for messages.
        step_bytes: of the memory that a step reads.
        step_flops: that it computes.

    Raises:
        EngineError: memory for not one step.
    """

    def __init__(
        self,
        memory: Buffer,
        kind: ggml.Type,
        doing: str,
        step_bytes: int,
        step_flops: int,
        most: int,
    ) -> None:
        self.backend, self._memory, self._kind = memory.backend, memory, kind
        self.step_bytes, self.step_flops = step_bytes, step_flops
        self._what, self._turn = f"{doing} {kind}", 0
        self._inputs: list[tuple[int, NDArray[np.generic]]] = []
        self._open = ExitStack()
        try:
            self._build(min(memory.size // step_bytes, most))
        except BaseException:
            self.close()
            raise

    def _build(self, most: int) -> None:
        tensors, nodes, others = self._sizes()
        overhead = function("ggml_tensor_overhead")()
        graph = function("ggml_graph_overhead_custom")(nodes, False)
        self._placed = describing(self._open, most * tensors * overhead)
        size = most * (nodes * overhead + graph) + others * overhead
        self._rest = describing(self._open, size)
        self._prepare()
        self._memory.clear()
        steps: list[tuple[int, int]] = []  # graph and last result
        while len(steps) < most and (step := self._next(nodes)):
            steps.append(step)
        if not steps:
            raise EngineError(f"{self._memory.size} bytes: too few for {self.step_bytes}")
        self._steps = steps
        supports, last = function("ggml_backend_dev_supports_op"), steps[0][1]
        self.supported = bool(supports(self.backend.device, last))
        if self.supported:
            self._fill()

    @abstractmethod
    def _sizes(self) -> tuple[int, int, int]:
        """Tensors of a step that lie in the memory; all others of its graph, with these; and
        tensors beside the steps."""

    @abstractmethod
    def _prepare(self) -> None:
        """Describe the inputs, and note what they are."""

    @abstractmethod
    def _graph(self, tensors: list[int], graph: int) -> int:
        """Add what is done with the tensors of a step; the last result."""

    @abstractmethod
    def _shapes(self) -> list[tuple[int, int, int]]:
        """Of the tensors of a step, ggml's way round."""

    def _next(self, nodes: int) -> tuple[int, int] | None:
        """The next step; none if the memory is full."""
        new, kind = function("ggml_new_tensor_3d"), self._kind.id
        made = [int(new(self._placed, kind, *shape)) for shape in self._shapes()]
        if not all(map(self._memory.place, made)):
            return None
        graph = function("ggml_new_graph_custom")(self._rest, nodes, False)
        return int(graph), self._graph(made, graph)

    def _fill(self) -> None:
        trouble = f"{self.backend.name} has no memory left for the results of steps"
        self.backend.allocate(self._open, self._rest, trouble)
        for tensor, values in self._inputs:
            function("ggml_backend_tensor_set")(tensor, values.ctypes.data, 0, values.nbytes)

    def step(self) -> float:
        """Do the next; seconds until the result can be read.

        Raises EngineError if the device does not do it with this type in this memory's layout.
        """
        if not self.supported:
            raise EngineError(f"{self.backend.name} does not {self._what} in this layout")
        graph, result = self._steps[self._turn % len(self._steps)]
        self._turn += 1
        return self.backend.compute(graph, result, self._what)

    def close(self) -> None:
        """Free what describes the steps, and their results; the memory stays."""
        self._open.close()
