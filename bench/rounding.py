"""What a simulated file loses when activations are rounded, too, as its types' kernels do it.

The CPU multiplies rows of a type with rows of integers: activations are rounded to Q8_0 or Q8_K
before (`vec_dot_type` in ggml's `ggml-cpu.c`; Q8_1 is Q8_0 and a sum). A file of round_trip.py
holds the weights in F32, so that nothing is rounded. Here every product with a weight that its plan
gives a type is computed anew, from rounded rows, while llama.cpp runs the graph.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from quality import Doubles

from gemcut import ggml
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.eval.texts.framing import RAW, frame
from gemcut.eval.texts.text import Text
from gemcut.llama import Context, Model, Tensor
from gemcut.plan import Plan
from gemcut.score import score

_CONTEXT = 512
_SUPER_BLOCK = 256


def rounded_scores(
    files: Mapping[str, tuple[Path, Plan]],
    reference: Path,
    texts: Sequence[Text],
    chunks: int,
    threads: int,
) -> dict[str, Doubles]:
    """Divergence of files of round_trip.py as their plans' kernels would round, as `scores`.

    Args:
        chunks: of each text.
    """
    how = ContextOptions(n_ctx=_CONTEXT, threads=threads)
    with ExitStack() as opened:

        def context(path: Path, products: Products | None = None) -> Context:
            options = ModelOptions(load_mode="none", repack=False)
            model = opened.enter_context(Model.load(path, options))
            return Context(model, how, *((products.on_tensor, products.wants) if products else ()))

        base = context(reference)
        rounding = [context(path, Products.of(plan)) for path, plan in files.values()]
        kld = []
        for chunk in frame(base.model, texts, RAW, _CONTEXT, chunks):
            logits = []
            for each in (base, *rounding):
                each.forget()
                logits.append(each.decode(chunk.tokens, outputs=chunk.outputs))
            _, *found = score(chunk.targets, logits[1:], logits[0], threads)
            kld.append([one.divergence.kld.mean() for one in found if one.divergence])
    return dict(zip(files, np.array(kld).T, strict=True))


@dataclass(frozen=True)
class Products:
    """Computes products anew, with rounded rows. Its methods are a context's.

    kinds: of each weight, the type that it stands for, or one for each of its matrices.
    """

    kinds: Mapping[str, Sequence[ggml.Type]]
    _weights: dict[str, ggml.Floats] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan) -> "Products":
        """By the types of a plan; what it leaves in F32 is not rounded."""
        types = {name: entry.experts or (entry.type,) for name, entry in plan.tensors.items()}
        found = {name: [ggml.type_named(kind) for kind in own] for name, own in types.items()}
        return cls({name: own for name, own in found.items() if {k.name for k in own} != {"f32"}})

    def wants(self, name: str, tensor: Tensor) -> bool:
        """Whether it is a product with such a weight."""
        return tensor.op in ("MUL_MAT", "MUL_MAT_ID") and tensor.sources[0].name in self.kinds

    def on_tensor(self, name: str, tensor: Tensor) -> None:
        """Put the product with rounded rows in the place of the one that was computed."""
        weight, rows, *ids = tensor.sources
        kinds, values = self.kinds[weight.name], rows.read()
        if weight.name not in self._weights:
            self._weights[weight.name] = weight.read()[0]
        matrices = self._weights[weight.name]
        if ids:
            found = routed(matrices, kinds, values[0], ids[0].read()[0, 0])
        else:
            found = rounded(kinds[0], values) @ matrices[0].T
        tensor.write_bytes(np.ascontiguousarray(found, np.float32).view(np.uint8).ravel())


def routed(
    matrices: ggml.Floats, kinds: Sequence[ggml.Type], rows: ggml.Floats, ids: NDArray[np.int32]
) -> ggml.Floats:
    """Products [tokens, used, outputs] with chosen experts, rows rounded as each one's type wants.

    Args:
        matrices: [experts, outputs, columns].
        kinds: one for all experts, or one for each.
        rows: [tokens, n, columns]; n is 1 if all experts of a token read the same row.
        ids: the experts chosen: [tokens, used].
    """
    own = np.broadcast_to(rows, (*ids.shape, rows.shape[-1]))
    found = np.empty((*ids.shape, matrices.shape[1]), np.float32)
    for expert in np.unique(ids):
        chosen = ids == expert
        found[chosen] = rounded(kinds[expert % len(kinds)], own[chosen]) @ matrices[expert].T
    return found


def rounded(kind: ggml.Type, rows: ggml.Floats) -> ggml.Floats:
    """Rows [..., columns] as the kernels of a type of weights see them."""
    if kind.block == _SUPER_BLOCK:
        return _as_q8_k(rows)
    seen = ggml.type_named("q8_0") if kind.quantized else kind
    flat = rows.reshape(-1, rows.shape[-1])
    found = ggml.dequantize(seen, ggml.quantize(seen, flat), flat.shape[1])
    return found.reshape(rows.shape)


def _as_q8_k(rows: ggml.Floats) -> ggml.Floats:
    """Blocks of 256 in steps of 1/127 of the largest number, which becomes -127.

    As `quantize_row_q8_K_ref` of ggml-quants.c.
    """
    blocks = rows.reshape(-1, _SUPER_BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale = np.divide(np.float32(-127), largest, out=np.zeros_like(largest), where=largest != 0)
    steps = np.minimum(np.rint(blocks * scale), 127)
    found = np.divide(steps, scale, out=np.zeros_like(blocks), where=scale != 0)
    return found.reshape(rows.shape)
