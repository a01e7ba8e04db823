"""Which experts a file sends each token to, and with what gates, as llama.cpp computes it.

Every architecture of llama.cpp routes in one function (`build_moe_ffn` in `src/llama-graph.cpp`),
but each chooses in its own way: by softmax, by sigmoid with a bias for the choice alone, within
groups, with the softmax after the choice, by the token's id. So nothing is recomputed from the
router's logits: the choice is read where it is used, as the ids that the experts' last product is
given, and the gates where the experts' results are multiplied with them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemcut.engine import ContextOptions
from gemcut.errors import EngineError
from gemcut.eval.texts.chunks import Chunk, Mask, parts
from gemcut.llama import Context, Model, Tensor

# On another device, a weight's copy is called "DEVICE#NAME#NUMBER".
_DOWN = re.compile(r"(?:[^#]*#)?blk\.(\d+)\.ffn_down_(ch)?exps\.weight(?:#\d+)?")
_WEIGHTED = re.compile(r"ffn_moe_weighted-(\d+)")

Ids = NDArray[np.uint16]
Gates = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Choices:
    """What one block's router chose.

    ids: the experts of every token [n_tokens, n_used], from 0 to n_experts - 1; their order is
        llama.cpp's and means nothing. gates: what the experts' results were multiplied with
        [n_tokens, n_used], normalised or not, as the architecture does it.
    """

    n_experts: int
    ids: Ids
    gates: Gates


Routing = Mapping[int, Choices]  # by block; a block without experts is not there


def capture(
    model: Model,
    options: ContextOptions,
    chunks: Sequence[Chunk],
    tell: Callable[[], None] | None = None,
) -> Routing:
    """The choices of every mixture block for the scored positions of all chunks, in their order.

    Computing is slower than without watching: never time it.

    Args:
        options: of a context that holds the longest chunk, and the outputs of a part of it.
        tell: called after every chunk.

    Returns:
        Nothing for a model without experts, of which one token is read.

    Raises:
        EngineError: llama.cpp refuses, gates are not finite, or a block routes other tokens than
            it was given.
    """
    watcher = _Watcher()
    found: dict[int, list[Choices]] = {}
    with Context(model, options, watcher.on_tensor, watcher.wants) as context:
        context.decode(chunks[0].tokens[:1], outputs="last")
        if not watcher.take():  # which now knows the last block that routes
            return {}
        for chunk in chunks:
            context.forget()
            for part in parts(chunk):
                context.decode(part.tokens, part.start, outputs=part.outputs)
                for block, seen in watcher.take().items():
                    found.setdefault(block, []).append(_scored(block, seen, part.outputs))
            if tell:
                tell()
    return {block: _joined(seen) for block, seen in sorted(found.items())}


class _Watcher:
    """Reads choices off a running graph. Its methods are a context's `wants` and `on_tensor`.

    A chunk may be computed in several graphs, one for each ubatch: their rows follow each other.
    Once it is known which block routes last, what comes behind it is not computed: no router sees
    it, and of a small model with a large vocabulary it is most of the work.
    """

    def __init__(self) -> None:
        self._parts: dict[int, list[Choices]] = {}
        # By block, what has come of a pair until the other half comes: mostly the ids before the
        # gates; the other way round where gates weigh what experts read (llama4).
        self._ids: dict[int, tuple[int, Ids] | None] = {}
        self._gates: dict[int, Gates] = {}
        self._last: int | None = None

    def wants(self, name: str, tensor: Tensor) -> bool:
        """Whether a result is the experts' last product, or their weighting."""
        op = tensor.op
        if op == "MUL_MAT_ID":
            return _DOWN.fullmatch(tensor.sources[0].name) is not None
        return op == "MUL" and _WEIGHTED.fullmatch(name) is not None

    def on_tensor(self, name: str, tensor: Tensor) -> bool:
        """Read the ids or the gates that a result was made from; whether more are to come."""
        weight, second, *rest = tensor.sources
        if rest and (down := _DOWN.fullmatch(weight.name)):
            ids = rest[0].read()[0, 0].astype(np.uint16)
            # Smaller experts beside the others (grovemoe) follow these and choose nothing.
            self._ids[int(down[1])] = None if down[2] else (weight.shape[1], ids)
            return self._pair(int(down[1]))
        if weighted := _WEIGHTED.fullmatch(name):
            self._gates[int(weighted[1])] = second.read()[0, :, :, 0].astype(np.float32)
            return self._pair(int(weighted[1]))
        return True

    def take(self) -> dict[int, Choices]:
        """What was seen since the last time."""
        found = {block: _joined(parts) for block, parts in self._parts.items()}
        self._parts, self._ids, self._gates = {}, {}, {}
        self._last = max(found, default=None)
        return found

    def _pair(self, block: int) -> bool:
        if block not in self._ids or block not in self._gates:
            return True
        chosen, gates = self._ids.pop(block), self._gates.pop(block)
        if chosen:
            self._parts.setdefault(block, []).append(_checked(block, *chosen, gates))
        return block != self._last


def _checked(block: int, n_experts: int, ids: Ids, gates: Gates) -> Choices:
    if ids.shape != gates.shape or (ids.size and int(ids.max()) >= n_experts):
        raise EngineError(
            f"block {block}: gates {gates.shape} for experts {ids.shape} of {n_experts}: "
            "llama.cpp routes in a way that is not known here"
        )
    if not np.isfinite(gates).all():
        raise EngineError(f"block {block}: gates are not finite: is the file damaged?")
    return Choices(n_experts, ids, gates)


def _scored(block: int, seen: Choices, outputs: Mask) -> Choices:
    """The rows of the scored positions; the last block computes no others."""
    rows, scored = len(seen.ids), int(outputs.sum())
    if rows == len(outputs):
        return Choices(seen.n_experts, seen.ids[outputs], seen.gates[outputs])
    if rows == scored:
        return seen
    raise EngineError(
        f"block {block} routed {rows} tokens, wanted all {len(outputs)} or the {scored} scored"
    )


def _joined(parts: Sequence[Choices]) -> Choices:
    ids, gates = ([getattr(part, name) for part in parts] for name in ("ids", "gates"))
    return Choices(parts[0].n_experts, np.concatenate(ids), np.concatenate(gates))
