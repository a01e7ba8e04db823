"""A model in the shapes that a plan writes: widths padded with zeros, gate and up written apart.

Nothing is read: the new tensors ask the source's for their rows, and add zeros. A plan's names are
those of the file that is written, the importance's those of the source.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from gemcut import ggml
from gemcut.convert.lazy import Array, Index, Matrix, Numbers, picked
from gemcut.convert.model import Model, Tensor, releasing
from gemcut.errors import PlanError
from gemcut.gguf_file import Value
from gemcut.plan import Plan
from gemcut.quantize.importance import Importance
from gemcut.quantize.widths import Padding, paddings, parts, splits, width

_MOST = 256  # units that are added at most; no type has longer blocks

_Names = Mapping[str, tuple[str, ...]]  # the source's name of a tensor -> the written ones


def shaped(model: Model, plan: Plan) -> Model:
    """The model with the plan's tensors; one that has them already is given back as it is.

    Raises:
        PlanError: the plan pads or splits what cannot be, or not all that belongs together.
    """
    if not any(entry.padded_to or entry.split for entry in plan.tensors.values()):
        return model
    change = _change(model, plan)
    if not change.grown and not any(len(names) > 1 for names in change.names.values()):
        return model
    tensors = tuple(new for old in model.tensors for new in change.tensors(old))
    return replace(
        model,
        tensors=tensors,
        metadata={**model.metadata, **change.metadata(model)},
        release=releasing(tensors, model.release),
    )


def shaped_importance(importance: Importance, model: Model, plan: Plan) -> Importance:
    """Importance [matrices, columns] by the names of the shaped model; what is added has none."""
    columns = {tensor.name: tensor.columns for tensor in shaped(model, plan).tensors}
    names = _names(model, plan)
    found = {}
    for tensor in model.tensors:
        weights = importance.get(tensor.name)
        if weights is not None:
            for name in names[tensor.name]:
                added = columns[name] - tensor.columns
                found[name] = np.pad(weights, ((0, 0), (0, added))) if added else weights
    return found


@dataclass(frozen=True)
class _Change:
    """What a plan makes of a model's shapes: new names, and paddings with their new widths."""

    names: _Names
    grown: tuple[tuple[Padding, int], ...]

    def metadata(self, model: Model) -> dict[str, Value]:
        """The keys that say the widths."""
        return {each.key: each.padded(model.metadata[each.key], to) for each, to in self.grown}

    def tensors(self, tensor: Tensor) -> Iterator[Tensor]:
        """What becomes of a tensor."""
        wanted = next(
            (to * p.tensors[tensor.name] for p, to in self.grown if tensor.name in p.tensors),
            width(tensor),
        )
        names = self.names[tensor.name]
        for number, name in enumerate(names):
            new = tensor if len(names) == 1 else _part(tensor, name, number)
            yield new if wanted == width(new) else _padded(new, wanted)


def _change(model: Model, plan: Plan) -> _Change:
    names, known = _names(model, plan), paddings(model)
    paddable = {
        written for each in known.values() for name in each.tensors for written in names[name]
    }
    for name, entry in plan.tensors.items():
        if entry.padded_to and name not in paddable:
            raise PlanError(
                f"{name}: cannot be padded to {entry.padded_to} in {model.architecture}"
            )
    widths = [(each, _wanted(plan, each, names)) for each in known.values()]
    return _Change(names, tuple((each, to) for each, to in widths if to != each.width))


def _names(model: Model, plan: Plan) -> _Names:
    """What the plan calls each of the model's tensors: a fused one, where it wants that, in two."""
    known = splits(model)
    apart = {n: both for n, both in known.items() if n not in plan.tensors}
    apart = {n: both for n, both in apart.items() if any(each in plan.tensors for each in both)}
    for name, both in apart.items():
        for each in both:
            if each not in plan.tensors or not plan.tensors[each].split:
                raise PlanError(
                    f"{name}: a plan that splits it has {' and '.join(both)}, marked as split"
                )
    return {tensor.name: apart.get(tensor.name, (tensor.name,)) for tensor in model.tensors}


def _wanted(plan: Plan, padding: Padding, names: _Names) -> int:
    """The width that a plan gives to all tensors of a padding."""
    found: dict[int, str] = {}
    for name, factor in padding.tensors.items():
        for written in names[name]:
            entry = plan.tensors.get(written)
            if entry is None:
                continue  # of another model; whoever compares the names says so better
            units = entry.padded_to or factor * padding.width
            if units % factor or not 0 <= units // factor - padding.width <= _MOST:
                raise PlanError(
                    f"{written}: padded to {units} units; wanted {factor * padding.width} to "
                    f"{factor * (padding.width + _MOST)}, in steps of {factor}"
                )
            found.setdefault(units // factor, written)
    if len(found) > 1:
        (one, first), (other, second) = sorted(found.items())[:2]
        raise PlanError(
            f"{first} has {one} units and {second} {other}: llama.cpp reads one width for all "
            "blocks; pad them all, or none"
        )
    return next(iter(found), padding.width)


def _part(tensor: Tensor, name: str, number: int) -> Tensor:
    """Gate or up out of a tensor that holds both, one below the other in every matrix."""
    height = width(tensor)
    rows = slice(number * height, (number + 1) * height)
    shape = (*tensor.shape[:-2], height, tensor.columns)
    return replace(tensor, name=name, shape=shape, build=lambda: picked(tensor.build(), rows))


def _padded(tensor: Tensor, to: int) -> Tensor:
    """A tensor with so many units: more columns of a down, more rows of gates and ups."""
    count = parts(tensor.name)
    down = tensor.columns == width(tensor) and ".ffn_down" in tensor.name
    height = tensor.shape[-2] if down else to * count
    columns = to if down else tensor.columns
    kind = _padded_type(tensor.source_type, tensor.columns, columns)

    def build() -> Array:
        return tensor.build().each(lambda matrix: Padded(matrix, height, columns, count))

    shape = (*tensor.shape[:-2], height, columns)
    return replace(tensor, shape=shape, source_type=kind, build=build)


class Padded(Matrix):
    """A matrix with zeros behind its rows, and zero rows below each of its parts."""

    def __init__(self, base: Matrix, rows: int, columns: int, parts: int = 1) -> None:
        """Parts are of equal height, before and after."""
        self.base, self.rows, self.columns = base, rows, columns
        self.type = _padded_type(base.type, base.columns, columns)
        self._old, self._new = base.rows // parts, rows // parts

    def read(self, index: Index) -> ggml.Floats:
        count, places, numbers = self._found(index)
        rows = np.zeros((count, self.columns), np.float32)
        if len(places):
            rows[places, : self.base.columns] = self.base.read(numbers)
        return rows

    def raw(self, index: Index) -> ggml.Bytes | None:
        """Zero bytes are zeros in every type that rows are passed on in."""
        count, places, numbers = self._found(index)
        known = self.base.raw(numbers) if self.type == self.base.type else None
        if known is None:
            return None
        rows = np.zeros((count, ggml.type_named(self.type).row_bytes(self.columns)), np.uint8)
        rows[places, : known.shape[1]] = known
        return rows

    def _found(self, index: Index) -> tuple[int, Numbers, Numbers]:
        """How many rows these are, which of them are the base's, and their numbers there."""
        part, row = np.divmod(np.arange(self.rows, dtype=np.int64)[index], self._new)
        places = np.flatnonzero(row < self._old).astype(np.int64)
        return len(row), places, (part * self._old + row)[places]


def _padded_type(name: str, old: int, new: int) -> str:
    """The type that rows are in: their own where zeros can be whole blocks behind theirs."""
    kind = ggml.type_named(name)
    return name if kind.fits(old) and kind.fits(new) else "bf16"
