"""Attention over keys and values on one device, timed: what a context costs, without a model.

Flash attention over blocks of keys and values that lie in a `Buffer`, in which `Steps` go round.
"""

import numpy as np

from gemcut import ggml
from gemcut.errors import EngineError
from gemcut.llama.backend import Buffer
from gemcut.llama.library import function
from gemcut.llama.steps import Steps

_F32, _F16 = 0, 1  # enum ggml_type
_MOST = 1 << 20  # blocks, tokens or heads: a bound far above any model's
_WIDTH = 128  # of a head in most models of today
_PADDING = 64  # rows of a mask come in multiples of it


class Attention(Steps):
    """Queries that attend to all cells of some blocks' caches, block after block.

    Args:
        memory: holds keys and values; its bytes are what they are.
        kind: of keys and values.
        queries: tokens that attend at once.
        cells: tokens that they attend to.
        heads: of keys and values, in each block.
        sharing: heads of queries to each of them.
        blocks: of a step.

    Raises:
        EngineError: a size that makes no sense, or memory for not one step.
    """

    def __init__(
        self,
        memory: Buffer,
        kind: ggml.Type,
        queries: int,
        cells: int,
        heads: int,
        sharing: int,
        blocks: int = 1,
    ) -> None:
        counts = (queries, cells, heads, sharing, blocks)
        if not (all(0 < n < _MOST for n in counts) and kind.fits(_WIDTH)):
            raise EngineError(f"no attention to {kind}: {queries=}, {cells=}, {heads=}, {blocks=}")
        # As llama.cpp has them: all heads of a cell lie side by side.
        self._shape, self._blocks, self._queries = (_WIDTH, heads, cells), blocks, queries
        self.sharing, self._heads = sharing, heads * sharing
        read = blocks * self.block_bytes(kind, cells, heads)
        flops = 4 * blocks * self._heads * queries * cells * _WIDTH
        super().__init__(memory, kind, "attend to", read, flops, _MOST)

    @staticmethod
    def block_bytes(kind: ggml.Type, cells: int, heads: int) -> int:
        """Bytes of a block's keys and values."""
        return 2 * cells * heads * kind.row_bytes(_WIDTH)

    def _sizes(self) -> tuple[int, int, int]:
        # Each block has a result, keys and values, and these as a head sees them.
        return 2 * self._blocks, 5 * self._blocks + 4, 2

    def _shapes(self) -> list[tuple[int, int, int]]:
        """Keys, values, keys, values and so on."""
        return [self._shape] * (2 * self._blocks)

    def _prepare(self) -> None:
        """Queries, and a mask of zeros, which hides nothing."""
        rows = -(-self._queries // _PADDING) * _PADDING
        self._asked = self._zeros(_F32, np.float32, _WIDTH, self._queries, self._heads)
        self._mask = self._zeros(_F16, np.float16, self._shape[2], rows, 1)

    def _zeros(self, kind: int, dtype: type[np.generic], *shape: int) -> int:
        tensor = int(function("ggml_new_tensor_3d")(self._rest, kind, *shape))
        self._inputs.append((tensor, np.zeros(shape, dtype)))
        return tensor

    def _graph(self, tensors: list[int], graph: int) -> int:
        attend, scale = function("ggml_flash_attn_ext"), _WIDTH**-0.5
        by_head = [function("ggml_permute")(self._rest, each, 0, 2, 1, 3) for each in tensors]
        for caches in zip(by_head[::2], by_head[1::2], strict=True):
            result = attend(self._rest, self._asked, *caches, self._mask, scale, 0.0, 0.0)
            function("ggml_build_forward_expand")(graph, result)
        return int(result)
