"""The last steps of a model, from normed hidden states to logits, read from one run and repeated.

Which steps these are is seen in llama.cpp's own graph, so no architecture need be known: a product
with the output or embedding matrix, and after it a scale, a soft cap, a bias. They are repeated on
the CPU by ggml, with weights as they lie in the mapped file: the same kernels on the same bytes.
"""

import ctypes
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemcut.closing import Closing
from gemcut.errors import EngineError
from gemcut.gguf_file import GGUFFile
from gemcut.gguf_parts import GGUFParts
from gemcut.llama.backend import Backend, describing
from gemcut.llama.library import function
from gemcut.llama.tensor import Tensor

_F32 = 0  # enum ggml_type
_ALIGNMENT = 32  # ggml ends the process for memory of its own that lies otherwise
_MOST_STEPS = 16
_MOST_ROWS = 1 << 20
# Which source of an operation is the weight; the other one is what flows.
_WEIGHT = {"MUL_MAT": 0, "MUL": 1, "ADD": 1, "SCALE": None, "TANH": None}
# Between devices a source is a copy, named after its device, itself and a number.
_COPY = re.compile(r"[^#]+#(.+)#\d+")


@dataclass(frozen=True)
class Step:
    """One operation: on a weight, or `scale * x + bias`, or neither."""

    op: str  # MUL_MAT, MUL, ADD, SCALE, TANH
    weight: str = ""
    scale: float = 1.0
    bias: float = 0.0


def steps_to(result: Tensor, start: str) -> tuple[Step, ...]:
    """The steps that compute a tensor of a running graph from the one called `start`.

    Raises EngineError for an operation that is not known here.
    """
    steps: list[Step] = []
    while _name(result) != start:
        op, sources = result.op, result.sources
        if op not in _WEIGHT or len(steps) == _MOST_STEPS:
            raise EngineError(f"the model's head is not known: it has {op}")
        which = _WEIGHT[op]
        scale, bias = result.parameters[:2].view(np.float32) if op == "SCALE" else (1.0, 0.0)
        weight = "" if which is None else _name(sources[which])
        steps.append(Step(op, weight, float(scale), float(bias)))
        result = sources[0 if which is None else 1 - which]
    return tuple(reversed(steps))


def _name(tensor: Tensor) -> str:
    name = tensor.name
    copy = _COPY.fullmatch(name)
    return copy[1] if copy else name


class Head(Closing):
    """The steps of a file, ready to be repeated. Close it, or use it as a context manager.

    Raises:
        GGUFError: the file cannot be read.
        EngineError: a weight is missing or of another shape than the step before it makes.
    """

    def __init__(self, path: Path, steps: Iterable[Step], threads: int | None = None) -> None:
        self._steps = tuple(steps)
        self._views: list[NDArray[np.uint8]] = []  # keeps the files mapped
        self._rows, self._graph, self._result = 0, 0, 0
        self._input: int = 0
        with ExitStack() as opened:
            self._files = opened.enter_context(GGUFParts(path)).files
            opened.callback(self._views.clear)
            self._backend = opened.enter_context(Backend("CPU", threads))
            self._context = _context(opened, len(self._steps))
            self._weights = {s.weight: self._weight(opened, s.weight) for s in self._of_weights()}
            self.n_embd, self.n_vocab = self._check()
            self._built = opened.enter_context(ExitStack())
            self._open = opened.pop_all()

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [n, n_vocab] of hidden states [n, n_embd], valid until the next call.

        Raises EngineError if there is no memory for them, ggml fails, or it is closed.
        """
        (rows, width), backend = hidden.shape, self._backend.handle
        if width != self.n_embd or not 0 < rows < _MOST_ROWS:
            raise EngineError(f"hidden states {hidden.shape}, wanted [n, {self.n_embd}]")
        if rows != self._rows:
            self._build(rows)
        given = np.ascontiguousarray(hidden, np.float32)
        function("ggml_backend_tensor_set")(self._input, given.ctypes.data, 0, given.nbytes)
        code = function("ggml_backend_graph_compute")(backend, self._graph)
        if code:
            raise EngineError(f"ggml did not compute the model's head: code {code}")
        return self._made

    def close(self) -> None:
        """Free everything; logits it returned must not be touched again."""
        self._made = np.empty((0, self.n_vocab), np.float32)
        self._open.close()

    def _of_weights(self) -> Iterable[Step]:
        return (step for step in self._steps if step.weight)

    def _file(self, name: str) -> GGUFFile:
        for file in self._files:
            if name in file.tensors:
                return file
        raise EngineError(f"the model's head takes {name!r}, which the file does not have")

    def _weight(self, opened: ExitStack, name: str) -> int:
        """A tensor of ggml's over the mapped bytes of a weight."""
        file = self._file(name)
        info, data = file.tensors[name], file.rows(name).reshape(-1)
        if data.ctypes.data % _ALIGNMENT:
            data = _aligned(data)
        self._views.append(data)
        address, new = data.ctypes.data, function("ggml_new_tensor_2d")
        tensor = int(new(self._context, info.type.id, info.shape[-1], info.rows))
        buffer = function("ggml_backend_cpu_buffer_from_ptr")(address, data.nbytes)
        opened.callback(function("ggml_backend_buffer_free"), buffer)
        function("ggml_backend_tensor_alloc")(buffer, tensor, address)
        return tensor

    def _check(self) -> tuple[int, int]:
        """The widths of what goes in and comes out; ggml ends the process for what does not fit."""
        first = width = 0
        for step in self._of_weights():
            info = self._file(step.weight).tensors[step.weight]
            rows, columns = info.rows, info.shape[-1]
            if step.op == "MUL_MAT":
                fits, first, width = columns == (width or columns), first or columns, rows
            else:
                fits = rows == 1 and columns in (1, width) and info.type.id == _F32
            if not fits:
                raise EngineError(f"the model's head cannot take {step.weight} of {info.shape}")
        if not first:
            raise EngineError("the model's head multiplies with no matrix")
        return first, width

    def _build(self, rows: int) -> None:
        """The graph for so many rows; each step writes over what the one before it made."""
        self._rows = 0
        self._built.close()
        context = _context(self._built, len(self._steps) + 1)
        flow = self._input = int(function("ggml_new_tensor_2d")(context, _F32, self.n_embd, rows))
        for step in self._steps:
            flow = self._step(context, flow, step)
        self._graph = function("ggml_new_graph_custom")(context, len(self._steps) + 2, False)
        function("ggml_build_forward_expand")(self._graph, flow)
        trouble = f"no memory for the logits of {rows} tokens: use a smaller context"
        self._backend.allocate(self._built, context, trouble)
        numbers = ctypes.c_float * (rows * self.n_vocab)
        found = numbers.from_address(function("ggml_get_data")(flow))
        self._made = np.ctypeslib.as_array(found).reshape(rows, self.n_vocab)
        self._rows = rows

    def _step(self, context: int, flow: int, step: Step) -> int:
        if step.op == "MUL_MAT":
            made = function("ggml_mul_mat")(context, self._weights[step.weight], flow)
            if not function("ggml_backend_dev_supports_op")(self._backend.device, made):
                raise EngineError(f"the CPU does not multiply {step.weight} as it is")
        elif step.op == "SCALE":
            made = function("ggml_scale_bias_inplace")(context, flow, step.scale, step.bias)
        elif step.op == "TANH":
            made = function("ggml_tanh_inplace")(context, flow)
        else:
            inplace = function(f"ggml_{step.op.lower()}_inplace")
            made = inplace(context, flow, self._weights[step.weight])
        return int(made)


def _context(opened: ExitStack, tensors: int) -> int:
    """Where ggml notes a few tensors and a graph of them."""
    overhead = function("ggml_graph_overhead_custom")(tensors + 2, False)
    size = overhead + (tensors + 1) * function("ggml_tensor_overhead")()
    return describing(opened, size)


def _aligned(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy that begins where ggml wants memory to begin."""
    room = np.empty(data.size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    copy = room[start : start + data.size]
    copy[:] = data
    return copy
