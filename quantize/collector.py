"""The evaluation callback that adds up what every weight of a running graph is multiplied with.

Which products count, and which of their rows, is what llama.cpp's own tool does
(`tools/imatrix/imatrix.cpp`), but for the output: its rows count here as well, under the name of
the weight, which is the embedding's where the two are tied. The weights that a router gave to its
experts are read where the experts' results are multiplied with them (`build_moe_ffn` in
`src/llama-graph.cpp`).
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gemcut import ggml
from gemcut.errors import EngineError
from gemcut.llama import Tensor
from gemcut.quantize.statistics import Entry

_F32 = 0  # GGML_TYPE_F32
_MIN_ROWS = 16  # of a plain product; llama.cpp passes over fewer
_WEIGHTED = "ffn_moe_weighted-"  # the experts' results times the router's weights

_Ids = NDArray[np.int32]


class Collector:
    """Sums of squared inputs. Its methods are a context's `wants` and `on_tensor`.

    What a decode added counts when it is `commit`ted, so that an interrupted one leaves no trace.
    """

    def __init__(self, entries: Mapping[str, Entry] | None = None) -> None:
        self.entries = dict(entries or {})
        self._new: dict[str, Entry] = {}
        self._gates: dict[str, ggml.Floats] = {}
        self._clear_graph()

    def wants(self, name: str, tensor: Tensor) -> bool:
        """Whether a result is a product with a weight, or the experts' weighting."""
        op = tensor.op
        if op == "MUL_MAT":
            weight, rows = tensor.sources
            return rows.type_id == _F32 and rows.shape[-2] >= _MIN_ROWS and _is_weight(weight)
        return op == "MUL_MAT_ID" or (op == "MUL" and name.startswith(_WEIGHTED))

    def on_tensor(self, name: str, tensor: Tensor) -> None:
        """Add what a result was made from.

        Raises:
            EngineError: an input is not finite.
        """
        sources = tensor.sources
        if tensor.op == "MUL":
            self._take_gates(name.removeprefix(_WEIGHTED), sources[1])
            return
        weight, rows, *ids = sources
        own = _name(weight)
        if own in self._seen:  # the next graph of the same decode
            self._clear_graph()
        self._seen.add(own)
        sums, counts = self._routed(weight, rows, ids[0]) if ids else self._plain(weight, rows)
        self._add(own, Entry(sums, counts))

    def commit(self) -> dict[str, Entry]:
        """Count what was added since the last time; everything that was counted so far."""
        entries = dict(self.entries)
        for name, new in self._new.items():
            old, whole = entries.get(name), replace(new, gates=self._gates.get(name))
            entries[name] = _added(old, whole) if old else whole
        self.entries, self._new, self._gates = entries, {}, {}
        self._clear_graph()
        return entries

    def _clear_graph(self) -> None:
        self._seen: set[str] = set()
        # Products with the same input share its sums; the tensors are those of one graph.
        self._known: dict[tuple[Tensor, ...], tuple[ggml.Floats, ggml.Floats]] = {}
        self._chosen: dict[str, list[tuple[str, int, _Ids]]] = {}  # by block: names, experts, ids
        self._early: dict[str, ggml.Floats] = {}  # by block, where rows are weighted beforehand
        self._ids: dict[Tensor, _Ids] = {}

    def _add(self, name: str, entry: Entry) -> None:
        if not np.isfinite(entry.sums).all():
            raise EngineError(f"the inputs of {name} are not finite: is the model's file damaged?")
        old = self._new.get(name)
        self._new[name] = _added(old, entry) if old else entry

    def _plain(self, weight: Tensor, rows: Tensor) -> tuple[ggml.Floats, ggml.Floats]:
        """Sums [matrices, columns] and counts [matrices] of a product with a weight."""
        matrices = weight.shape[0] * weight.shape[1]
        if (rows,) not in self._known or matrices > 1:
            self._known[rows,] = _sums(rows.read(), *weight.shape[:2])
        return self._known[rows,]

    def _routed(self, weight: Tensor, rows: Tensor, ids: Tensor) -> tuple[ggml.Floats, ggml.Floats]:
        """Sums [experts, columns] and counts [experts] of a product with chosen experts."""
        if ids not in self._ids:
            self._ids[ids] = ids.read()[0, 0]
        if (rows, ids) not in self._known:
            self._known[rows, ids] = _expert_sums(rows.read()[0], self._ids[ids], weight.shape[1])
        name = _name(weight)
        chosen = name, weight.shape[1], self._ids[ids]
        if (values := self._early.get(_block(name))) is not None:
            self._add_gates(*chosen, values)
        else:
            self._chosen.setdefault(_block(name), []).append(chosen)
        return self._known[rows, ids]

    def _take_gates(self, block: str, weights: Tensor) -> None:
        """Take the router's weights [tokens, used, 1] of a block, for its experts' rows."""
        values = weights.read()[0, :, :, 0]
        chosen = self._chosen.pop(block, [])
        for each in chosen:
            self._add_gates(*each, values)
        if not chosen:
            self._early[block] = values

    def _add_gates(self, name: str, experts: int, ids: _Ids, values: ggml.Floats) -> None:
        if values.shape == ids.shape:
            gates = np.bincount(ids.ravel(), values.ravel(), experts).astype(np.float32)
            self._gates[name] = self._gates[name] + gates if name in self._gates else gates


def _is_weight(tensor: Tensor) -> bool:
    name = _name(tensor)
    return name.startswith("blk.") or (name.endswith(".weight") and tensor.op == "NONE")


def _name(weight: Tensor) -> str:
    """The name in the file; a copy on another device is "DEVICE#NAME#NUMBER"."""
    parts = weight.name.split("#")
    return parts[1] if len(parts) > 1 else parts[0]


def _block(name: str) -> str:
    return name.split(".")[1] if name.startswith("blk.") else ""


def _sums(rows: ggml.Floats, outer: int, inner: int) -> tuple[ggml.Floats, ggml.Floats]:
    """Sums over the rows [n3, n2, n, columns] that each of outer x inner matrices is used with.

    ggml repeats the matrices over the two leading dimensions of the rows.
    """
    n3, n2, n, columns = rows.shape
    if outer * inner == 1:
        flat = rows.reshape(-1, columns)
        return np.einsum("ij,ij->j", flat, flat)[None], np.array([len(flat)], np.float32)
    squares = np.einsum("abij,abij->abj", rows, rows)
    folded = squares.reshape(n3 // outer, outer, n2 // inner, inner, columns).sum(axis=(0, 2))
    counts = np.full(outer * inner, n3 * n2 * n // (outer * inner), np.float32)
    return folded.reshape(-1, columns), counts


def _expert_sums(rows: ggml.Floats, ids: _Ids, experts: int) -> tuple[ggml.Floats, ggml.Floats]:
    """Sums [experts, columns] over the rows that each expert was given, and how many they were.

    Args:
        rows: [tokens, n, columns]; n is 1 if all experts of a token read the same row.
        ids: the experts chosen: [tokens, used].
    """
    tokens, n, columns = rows.shape
    flat, used = rows.reshape(-1, columns), ids.shape[1]
    order = np.argsort(ids, axis=None, kind="stable")
    source = (np.arange(tokens)[:, None] * n + np.arange(used) % n).ravel()[order]
    counts = np.bincount(ids.ravel(), minlength=experts)
    sums = np.zeros((experts, columns), np.float32)
    # Not one product with a matrix of who was sent where: BLAS brings threads of its own, which
    # get into the way of llama.cpp's.
    for expert, own in enumerate(np.split(source, np.cumsum(counts)[:-1])):
        if own.size:
            given = flat[own]
            sums[expert] = np.einsum("ij,ij->j", given, given)
    return sums, counts.astype(np.float32)


def _added(one: Entry, other: Entry) -> Entry:
    if one.sums.shape != other.sums.shape:
        raise EngineError(f"a weight's inputs have shape {other.sums.shape}, were {one.sums.shape}")
    gates = None if one.gates is None or other.gates is None else one.gates + other.gates
    return Entry(one.sums + other.sums, one.counts + other.counts, gates)
