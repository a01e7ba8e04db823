"""The strongest peer recipe that is public, rebuilt: types for a size by imatrix-weighted errors.

llama.cpp's pull request #15550 (E. Addario, open as of November 2026) with an ordinary imatrix,
that is without the mean activations and statistics of its author's own fork. What it does:

* A row's error is that of a round trip, weighted by importance and relative to the row's own
  weighted square. Weights far out (above median + 4 x 1.4826 MAD of their logarithms) are cut
  off, and so are the values of down projections below 3 bits, at 4 standard deviations.
* A matrix counts its rows times the mean without the highest and lowest percent; experts add up,
  however often they are used. Attention counts more in few bits: times 1 + 0.5 x 2^(3 - bpw).
* What is on the convex front of bytes and error is bought from the best gain per byte downwards
  (which is what its Lagrangian with refill comes to), some gains counting more: dense down
  projections 6 times, the output 3, a tied embedding up to 2.5, values 1.25.

Here every row is measured instead of a sample.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gemcut import ggml
from gemcut.convert.model import Model, Tensor
from gemcut.plan import Entry, Plan
from gemcut.quantize.candidates import fallback
from gemcut.quantize.importance import Importance
from gemcut.quantize.local_error import round_trip
from gemcut.tensor_sensitivity import Candidate

TYPES = (
    "iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s iq4_xs iq4_nl q2_k q3_k q4_0 q4_1 q4_k q5_0 "
    "q5_1 q5_k q6_k q8_0 f16 bf16"
).split()
_TAPER = 2.2  # bits per weight below which there are no boosts for embedding and down projections

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """A type with the tensor's bytes and error in it."""

    type: str
    size: int
    error: float


Fronts = Mapping[str, Sequence[Point]]


def fronts(model: Model, importance: Importance) -> Fronts:
    """For every tensor that may be cut, its convex front of bytes and error, smallest first."""
    return {
        tensor.name: _convex(_points(tensor, importance.get(tensor.name)))
        for tensor in model.tensors
        if not tensor.kept and tensor.quantizable
    }


def choose(model: Model, known: Fronts, stock: Plan) -> Plan:
    """The types for no more bytes of tensors than a mixture takes."""
    tensors = {tensor.name: tensor for tensor in model.tensors}
    room = sum(_bytes(tensors[name], stock.tensors[name].type) for name in known)
    weights = sum(tensors[name].weights for name in known)
    tied = "output.weight" not in tensors
    boosts = {n: _boost(tensors[n], weights, tied, 8 * room / weights) for n in known}
    level = dict.fromkeys(known, 0)
    spare = room - sum(front[0].size for front in known.values())
    heap: list[tuple[float, str]] = []

    def push(name: str) -> None:
        if level[name] + 1 < len(known[name]):
            low, high = known[name][level[name] : level[name] + 2]
            gain = boosts[name] * (low.error - high.error) / (high.size - low.size)
            heapq.heappush(heap, (-gain, name))

    for name in known:
        push(name)
    while heap:
        _, name = heapq.heappop(heap)
        low, high = known[name][level[name] : level[name] + 2]
        if high.size - low.size <= spare:
            spare -= high.size - low.size
            level[name] += 1
            push(name)
    entries = {name: Entry(front[level[name]].type) for name, front in known.items()}
    return replace(stock, tensors={**stock.tensors, **entries}, request={}, solver={"name": "peer"})


def _points(tensor: Tensor, importance: ggml.Floats | None) -> list[Point]:
    kinds = {
        fallback(kind, tensor.columns)
        for kind in map(ggml.type_named, TYPES)
        if importance is not None or not kind.name.startswith("iq")
    }
    sizes = {kind: _bytes(tensor, kind.name) for kind in kinds}
    return [Point(kind.name, sizes[kind], _error(tensor, kind, importance)) for kind in kinds]


def _error(tensor: Tensor, kind: ggml.Type, importance: ggml.Floats | None) -> float:
    height = tensor.rows // tensor.matrices
    total = 0.0
    for matrix in range(tensor.matrices):
        rows = tensor.read(matrix * height, (matrix + 1) * height)
        weights = None if importance is None else importance[matrix]
        clipped = _clipped(rows) if "ffn_down" in tensor.name and kind.bpw < 3 else rows
        back = round_trip(tensor, Candidate(kind), clipped, weights)
        metric = np.ones(tensor.columns) if weights is None else _winsorised(weights)
        squares = np.square(rows, dtype=np.float64) @ metric
        errors = np.square(back - clipped, dtype=np.float64) @ metric
        total += height * _trimmed(errors / np.where(squares > 1e-12, squares, np.inf))
    inner = any(part in tensor.name for part in ("attn_q", "attn_k", "attn_o", "attn_v"))
    return total * (1 + 0.5 * 2 ** (3 - kind.bpw) if inner else 1.0)


def _clipped(rows: ggml.Floats) -> ggml.Floats:
    mean, deviation = rows.mean(axis=1, keepdims=True), rows.std(axis=1, keepdims=True)
    return np.asarray(np.clip(rows, mean - 4 * deviation, mean + 4 * deviation), np.float32)


def _winsorised(weights: ggml.Floats) -> Doubles:
    logarithms = np.log(weights[weights > 0], dtype=np.float64)
    if len(logarithms) < max(8, len(weights) / 2):
        return weights.astype(np.float64)
    median = np.median(logarithms)
    deviation = np.median(np.abs(logarithms - median))
    cap = np.exp(median + 4 * 1.4826 * deviation)
    return np.asarray(np.minimum(weights, cap), np.float64)


def _trimmed(values: Doubles) -> float:
    cut = len(values) // 100
    return float(np.sort(values)[cut : len(values) - cut].mean())


def _convex(points: Sequence[Point]) -> list[Point]:
    hull: list[Point] = []
    for point in sorted(points, key=lambda p: (p.size, p.error)):
        if hull and point.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _gain(low: Point, high: Point) -> float:
    return (low.error - high.error) / (high.size - low.size)


def _boost(tensor: Tensor, weights: int, tied: bool, bpw: float) -> float:
    if tensor.name.endswith("ffn_down.weight"):
        return 6.0 if bpw >= _TAPER else 1.0
    if tensor.name == "output.weight":
        return 3.0
    if "attn_v" in tensor.name:
        return 1.25
    if tied and tensor.name == "token_embd.weight" and bpw >= _TAPER:
        share = tensor.weights / weights
        return 2.5 if share <= 0.1 else max(1.25, 2.5 * (1 - 3 * (share - 0.1)))
    return 1.0


def _bytes(tensor: Tensor, kind: str) -> int:
    return tensor.rows * ggml.type_named(kind).row_bytes(tensor.columns)
