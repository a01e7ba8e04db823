"""Bytes that llama.cpp reserves for computing a ubatch: masks, activations, logits.

Its compute buffer is what its graph allocator needs for the largest ubatch, so it grows linearly
with n_ubatch. The formulas follow the order in which a block's results live and die; the counts of
how many live at once were found by asking llama.cpp (a load without allocation) for 23 models'
shapes. They are upper bounds: `tests/test_ledger.py` holds them against llama.cpp.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemcut import ggml
from gemcut.engine import ContextOptions
from gemcut.errors import GGUFError
from gemcut.gguf_file import Value
from gemcut.kv_cache import KVCache

_F32 = 4  # activations are F32
_HALF = 2  # masks, and copies of keys and values that are dequantized
_LARGEST = 1 << 31
_PARALLEL = ("gemma4", "arctic")  # architectures with a dense feed-forward beside the experts
_INDICES = 48  # bytes of positions and cache indices for a token
_Q8_1 = 36 / 32 / _F32  # of an F32 activation, as CUDA's products of quantized weights read it


@dataclass(frozen=True)
class Widths:
    """How wide a token's activations are in a block, in numbers."""

    hidden: int
    vocabulary: int
    dense: int  # units of a dense feed-forward
    shared: int  # units of the shared experts
    expert: int  # units of one expert
    used: int  # experts of a token
    heads: int
    query: int  # of one head, as it is multiplied with the keys
    value: int  # of one head, as attention returns it
    per_layer: int  # of per-layer embeddings, over all blocks
    head_lengths: tuple[int, ...]  # of keys, each once
    compressed: bool  # attention is computed on compressed keys (MLA)
    parallel: bool  # a dense feed-forward is computed beside the experts, in the same block

    @property
    def narrow(self) -> int:
        """Of all heads' queries together, in the layers where they are narrowest."""
        return self.heads * min(self.head_lengths)


def widths(metadata: Mapping[str, Value]) -> Widths:
    """A model's widths, by its metadata.

    Raises:
        GGUFError: a number that is none.
    """
    read = _Numbers(metadata)
    heads, hidden = read("attention.head_count"), read("embedding_length")
    even = hidden // heads if heads else 0
    query, value = read("attention.key_length", even), read("attention.value_length", even)
    dense = read("feed_forward_length")
    shared = read("expert_shared_count") * read("expert_feed_forward_length")
    everywhere = read("interleave_moe_layer_step") == 1  # experts, in place of the dense width
    return Widths(
        hidden=hidden,
        vocabulary=read.vocabulary(),
        dense=0 if everywhere else dense,
        shared=max(shared, read("expert_shared_feed_forward_length")),
        expert=read("expert_feed_forward_length") or dense,
        used=read("expert_used_count"),
        heads=heads,
        query=query,
        value=value,
        per_layer=read("embedding_length_per_layer_input") * read("block_count"),
        head_lengths=tuple(sorted({query, read("attention.key_length_swa", query)})),
        compressed=read("attention.key_length_mla") > 0,
        parallel=read.architecture in _PARALLEL,
    )


def compute_bytes(model: Widths, cache: KVCache, options: ContextOptions) -> int:
    """Bytes of the compute buffer where whole blocks are computed, and the output.

    Without what flash attention and offloading put there on a card: see `dequantized_bytes`.
    """
    tokens = min(options.n_ubatch, options.n_ctx)
    scores = 0 if options.flash_attention is not False else _scores(model, cache, options)
    hole = _hole(model, options)
    attention = _compressed_attention(model) if model.compressed else _attention(model)
    live = max(_experts(model, hole), _dense(model, hole), attention, scores)
    outputs = min(options.n_outputs or tokens, tokens)
    # What the blocks held is free by then, but in pieces, and logits need one.
    head = outputs * model.vocabulary + tokens * (live // 2 + 2 * model.hidden)
    per_token = _mask(cache, options) + _F32 * live + _INDICES
    states = options.n_seq * max((block.state for block in cache.blocks), default=0)
    return max(tokens * per_token, _F32 * head) + _F32 * (states + _rotations(model, options))


def dequantized_bytes(cache: KVCache, options: ContextOptions) -> int:
    """Bytes in a card's compute buffer for the F16 copy of one block's quantized keys and values.

    CUDA's flash attention over several tokens reads F16 alone, and asks for the copy's room with
    its result (ggml-cuda, `ggml_cuda_flash_attn_ext_get_alloc_size`).
    """
    full, swa = cache.cells(options)
    widest = 0
    for block in cache.blocks:
        copied = block.keys * (options.type_k != "f16") + block.values * (options.type_v != "f16")
        widest = max(widest, copied * (swa if block.sliding else full))
    return _HALF * widest


def pool_bytes(model: Widths, options: ContextOptions) -> int:
    """Bytes that CUDA takes beside the compute buffer to quantize the activations of a product."""
    used = max(model.used, 1)
    widest = max(
        used * max(model.hidden, model.expert if model.used else 0),
        model.dense,
        model.shared,
        model.heads * model.value,
    )
    return int(min(options.n_ubatch, options.n_ctx) * _F32 * widest * _Q8_1)


def crossing_bytes(model: Widths, options: ContextOptions) -> int:
    """Bytes in a card's compute buffer while the host computes its experts, for what is computed
    beside them."""
    beside = 2 * model.hidden if model.parallel else model.shared
    return _F32 * beside * min(options.n_ubatch, options.n_ctx)


def attention_flop(metadata: Mapping[str, Value], cache: KVCache) -> tuple[int, ...]:
    """FLOP of each block's attention for a token and a cell that it attends to.

    Every head multiplies its query with a key and its share with a value. Blocks that keep a state
    instead of keys and values have none; those that use another block's have their own.
    """
    model, read = widths(metadata), _Numbers(metadata)
    full = model.query + model.value
    sliding = read("attention.key_length_swa", model.query)
    sliding += read("attention.value_length_swa", model.value)
    return tuple(
        0
        if block.state and not block.keys
        else 2 * model.heads * (sliding, full)[not block.sliding]
        for block in cache.blocks
    )


def _mask(cache: KVCache, options: ContextOptions) -> int:
    """Bytes of the masks for a token, one for each kind of cache."""
    size = _F32 if options.flash_attention is False else _HALF
    return size * sum(_cells(cache, options))


def _scores(model: Widths, cache: KVCache, options: ContextOptions) -> int:
    """Numbers of a token in attention without flash attention."""
    width = max(_cells(cache, options), default=0) + 4 * model.query + model.value
    return model.heads * width + model.hidden


def _cells(cache: KVCache, options: ContextOptions) -> list[int]:
    """Cells that a token's attention goes over, for each kind of cache there is."""
    streams = 1 if options.kv_unified else options.n_seq
    kinds = {block.sliding for block in cache.blocks if block.keys}
    return [cache.cells(options)[sliding] // streams for sliding in sorted(kinds)]


def _experts(model: Widths, hole: int) -> int:
    """Numbers of a token while its routed experts are computed.

    Gate, up and their product, beside them what goes past the experts. The experts' results fit
    into the room of gate and up, or come on top. A narrow gate finds room in what attention left.
    """
    hidden, gate, down = model.hidden, model.used * model.expert, model.used * model.hidden
    if down <= 2 * gate:
        return 3 * gate + 3 * hidden + hole
    if model.narrow >= hidden >= gate:
        return 3 * hidden + hole + down
    if model.narrow >= hidden >= gate / 2:
        return 3 * gate + 2 * hidden + hole + down
    return 3 * gate + 3 * hidden + hole + down


def _dense(model: Widths, hole: int) -> int:
    """Numbers of a token in a dense feed-forward.

    Beside shared experts lie the results of the routed ones.
    """
    beside = 4 * model.hidden if model.compressed else 3 * model.hidden + hole
    shared = 3 * model.shared + 6 * model.hidden + hole
    return max(3 * model.dense + beside, shared * (model.shared > 0)) + 2 * model.per_layer


def _hole(model: Widths, options: ContextOptions) -> int:
    """Numbers of a token in the hole that its queries leave, where nothing large fits in.

    Queries of quantized keys are rotated, so that there are two; as wide as the residual stream
    they leave room that is used.
    """
    if model.compressed:
        return 0
    if _rotations(model, options) and model.narrow <= model.hidden:
        return 2 * model.narrow * (model.narrow < model.hidden)
    return model.narrow


def _attention(model: Widths) -> int:
    """Numbers of a token in attention; where layers are of two widths, more is left between."""
    queries = model.heads * model.query
    wide = queries if model.narrow < queries else 0
    return 3 * model.hidden + 2 * queries + wide


def _compressed_attention(model: Widths) -> int:
    """Numbers of a token in attention on compressed keys, where queries are as wide as those."""
    return model.heads * (2 * model.query + model.value) + model.hidden


def _rotations(model: Widths, options: ContextOptions) -> int:
    """Numbers in the matrices that rotate keys and values before they are quantized."""
    quantized = any(ggml.type_named(kind).quantized for kind in (options.type_k, options.type_v))
    return sum(length**2 for length in model.head_lengths) if quantized else 0


class _Numbers:
    """The architecture's numbers; of a list over the blocks, the largest."""

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self._metadata = metadata
        self.architecture = str(self._data("general.architecture"))

    def __call__(self, key: str, default: int = 0) -> int:
        name = f"{self.architecture}.{key}"
        data = self._data(name)
        data = max(data, default=0) if isinstance(data, list) else data
        if data is None:
            return default
        if not isinstance(data, int) or not 0 <= data < _LARGEST:
            raise GGUFError(f"{name} is {data!r:.40}, wanted a number")
        return int(data)

    def vocabulary(self) -> int:
        """Number of tokens."""
        tokens = self._data("tokenizer.ggml.tokens")
        return len(tokens) if isinstance(tokens, list) else self("vocab_size")

    def _data(self, name: str) -> Any:
        value = self._metadata.get(name)
        return None if value is None else value.data
