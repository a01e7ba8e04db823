"""What a model keeps of the text it has read: bytes of its caches for any context.

The arithmetic is llama.cpp's at the pinned version (llama-context.cpp for the size of a context,
llama-kv-cache.cpp and llama-kv-cache-iswa.cpp for keys and values, llama-memory-recurrent.cpp for
states). `kv_layout` says what the blocks of an architecture keep.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from gemcut import ggml
from gemcut.engine import ContextOptions

# What llama.cpp lets keys and values be.
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_PAD = 256  # llama.cpp rounds contexts and windows up to it
_STATE_BYTES = 4  # states are F32, whatever the type of keys and values


@dataclass(frozen=True)
class Block:
    """What one block keeps: numbers per token in its caches, and numbers in its state.

    A block that takes an earlier one's keys and values, and one without attention, keeps none.
    Where values are decompressed from the keys (MLA) there are none to keep, either.
    """

    keys: int = 0
    values: int = 0
    sliding: bool = False  # keeps a window of the context only
    index_keys: int = 0  # of a sparse attention's indexer
    index_values: int = 0
    state: int = 0  # of a recurrent block or a convolution: the same for any context

    @property
    def empty(self) -> bool:
        """Whether the block keeps nothing."""
        return not (self.keys or self.index_keys or self.state)


@dataclass(frozen=True)
class CacheSizes:
    """Bytes of the caches, by their kind; the kinds are those of `engine.Memory`."""

    full: int
    swa: int
    recurrent: int

    @property
    def total(self) -> int:
        """Bytes of all caches."""
        return self.full + self.swa + self.recurrent


@dataclass(frozen=True)
class KVCache:
    """What all blocks of a model keep.

    `window` is in tokens, 0 without sliding blocks. Without flash attention, values lie transposed
    in rows of one width for all blocks: `widest_values` numbers per token.
    """

    blocks: tuple[Block, ...]
    window: int = 0
    widest_values: int = 0

    def per_token(self, kind: str = "f16", sliding: bool = False) -> int:
        """Bytes per token of the context, or per cell of the windows, with flash attention.

        Raises:
            PlanError: the blocks' keys or values do not divide into the type's blocks.
        """
        named = ggml.type_named(kind)
        return sum(
            named.row_bytes(width)
            for block in self._of(sliding)
            for width in (block.keys, block.values, block.index_keys, block.index_values)
        )

    @property
    def state_bytes(self) -> int:
        """Bytes of the recurrent states of one sequence."""
        return _STATE_BYTES * sum(block.state for block in self.blocks)

    def cells(self, options: ContextOptions) -> tuple[int, int]:
        """Cells of all sequences together: of a block that sees the whole context, of a window."""
        streams = 1 if options.kv_unified else options.n_seq
        full = _padded(_padded(options.n_ctx) // streams)
        n_batch = min(full * streams, options.n_batch or options.n_ctx)
        window = self.window * (options.n_seq if options.kv_unified else 1)
        swa = _padded(min(full, window + min(n_batch, options.n_ubatch)))
        return full * streams, (full if options.swa_full else swa) * streams

    def sizes(self, options: ContextOptions) -> CacheSizes:
        """Bytes of the caches of a context with these options.

        Raises:
            PlanError: keys or values do not divide into the blocks of their type.
        """
        full, swa = self.cells(options)
        return CacheSizes(
            full * self._per_cell(False, options),
            swa * self._per_cell(True, options),
            options.n_seq * self.state_bytes,
        )

    def _per_cell(self, sliding: bool, options: ContextOptions) -> int:
        type_k, type_v = ggml.type_named(options.type_k), ggml.type_named(options.type_v)
        transposed = options.flash_attention is False
        total = 0
        for block in self._of(sliding):
            values = self.widest_values if transposed and block.values else block.values
            total += type_k.row_bytes(block.keys) + type_k.row_bytes(block.index_keys)
            total += type_v.row_bytes(values) + type_v.row_bytes(block.index_values)
        return total

    def _of(self, sliding: bool) -> Iterable[Block]:
        return (block for block in self.blocks if block.sliding == sliding)


def _padded(tokens: int) -> int:
    return -(-tokens // _PAD) * _PAD
