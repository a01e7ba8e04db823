"""A model whose weights are what types would make of them, and back again.

What a type costs is then measured without anything that could run the type: the values are written
as F32, and every file is computed by the same code.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gemcut import ggml
from gemcut.convert.lazy import Array, Index, Matrix
from gemcut.convert.model import Model, Tensor
from gemcut.plan import Plan
from gemcut.quantize.choose import plan_uniform
from gemcut.quantize.importance import Importance
from gemcut.quantize.reshape import shaped, shaped_importance
from gemcut.quantize.tiles import encode
from gemcut.quantize.writer import write_model


class Returned(Matrix):
    """One matrix of a tensor, written in a type and read again."""

    type = "f32"

    def __init__(
        self, tensor: Tensor, number: int, kind: ggml.Type, importance: ggml.Floats | None
    ) -> None:
        """The matrix of this number. importance: float32 [columns]."""
        self.rows, self.columns = tensor.rows // tensor.matrices, tensor.columns
        self._tensor, self._first = tensor, number * self.rows
        self._kind, self._importance = kind, importance

    def read(self, index: Index) -> ggml.Floats:
        """The rows of a slice, as tiles are."""
        assert isinstance(index, slice)
        start, stop, _ = index.indices(self.rows)
        span = self._first + start, self._first + stop
        coded = encode(self._tensor, self._kind, *span, self._importance)
        return ggml.dequantize(self._kind, coded, self.columns)


def returned(model: Model, plan: Plan, importance: Importance) -> Model:
    """The model with all weights as the plan's file would hold them."""
    weights = shaped_importance(importance, model, plan)
    made = shaped(model, plan)
    tensors = []
    for tensor in made.tensors:
        entry = plan.tensors[tensor.name]
        kinds = [ggml.type_named(kind) for kind in entry.experts or (entry.type,)]
        own = weights.get(tensor.name)
        tensors.append(tensor if tensor.kept else _returned(tensor, kinds, own))
    return replace(made, tensors=tuple(tensors))


def write_returned(
    model: Model, plan: Plan, importance: Importance, path: Path, threads: int
) -> None:
    """Write these values in F32."""
    path.unlink(missing_ok=True)
    found = returned(model, plan, importance)
    write_model(found, plan_uniform(found, "f32"), path, threads=threads, restart=True)


def _returned(tensor: Tensor, kinds: Sequence[ggml.Type], importance: ggml.Floats | None) -> Tensor:
    """A tensor, whose matrices have one type each or all the same."""
    count = tensor.matrices
    each = [kinds[number % len(kinds)] for number in range(count)]

    def build() -> Array:
        rows = [None] * count if importance is None else list(importance)
        pairs = zip(range(count), each, rows, strict=True)
        return Array(tensor.shape, tuple(Returned(tensor, *pair) for pair in pairs))

    return replace(tensor, source_type="f32", build=build)
