"""What each block of an architecture keeps, read from a model's metadata.

Most of it is in the metadata; what llama.cpp knows beside it is in the tables below. They are
those of `load_arch_hparams` of its models and of `llama_model::create_memory`, at the pinned
version, for one context without a drafting head (NextN blocks have no cache of their own then).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemcut.errors import GGUFError
from gemcut.gguf_file import Value
from gemcut.kv_cache import Block, KVCache

MAX_BLOCKS = 512  # LLAMA_MAX_LAYERS: this number comes off disk
_LARGEST = 1 << 31


@dataclass(frozen=True)
class _Pattern:
    """Which blocks slide where the metadata has no list: all but one in `period`; 0: every one."""

    period: int
    full_first: bool = False  # of each period, the first block sees everything, not the last
    default: int = 0  # window in tokens if the metadata names none
    fixed: int = 0  # window that is used, whatever the metadata says, if it is not 0

    def slides(self, block: int, period: int) -> bool:
        if period == 0:
            return True
        return block % period != (0 if self.full_first else period - 1)


_LISTED = _Pattern(1)  # the metadata always has the list
_SLIDING: Mapping[str, _Pattern] = {
    **dict.fromkeys(["gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35"], _LISTED),
    **dict.fromkeys(
        ["afmoe", "cohere2", "exaone4", "exaone-moe", "mellum", "muse-glimmer", "olmo2"],
        _Pattern(4),
    ),
    **dict.fromkeys(["lfm2", "lfm2moe"], _Pattern(0)),
    **dict.fromkeys(["cohere2moe", "laguna"], _Pattern(4, full_first=True)),
    "gemma2": _Pattern(2, default=4096),
    "gemma3": _Pattern(6),
    "gemma3n": _Pattern(5),
    "gpt-oss": _Pattern(2),
    "llama4": _Pattern(4, default=8192, fixed=8192),
    "plamo3": _Pattern(8),
    "smallthinker": _Pattern(4, full_first=True, fixed=4096),
}
# Of so many blocks one has attention, if the metadata says nothing else; the others a state.
_ATTENTION_INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}
_WITH_INDEXER = {"deepseek32", "glm-dsa"}
_NEXTN_CACHED = {"bailingmoe3", "nemotron_h", "nemotron_h_moe"}
_NO_CACHE = set(
    "bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert "
    "gemma-embedding t5encoder dream llada llada-moe rnd1 clip wavtokenizer-dec".split()
)
# Caches of a kind of their own, blocks that are run several times, or another model's caches.
_UNKNOWN = set(
    "deepseek4 dflash dots3note eagle3 gemma4-assistant glm5-next graniteswitch hrm_text hy_v4 "
    "minimax-01 nanbeige pockettts qwen3tts qwen4exp t5".split()
)


class _Keys:
    """An architecture's numbers in the metadata, checked: they come off disk."""

    def __init__(self, architecture: str, metadata: Mapping[str, Value]) -> None:
        self.architecture, self.metadata = architecture, metadata
        self.blocks = self.number("block_count")

    def get(self, key: str) -> Any:
        value = self.metadata.get(f"{self.architecture}.{key}")
        return None if value is None else value.data

    def number(self, key: str, default: int = 0) -> int:
        """One number; of a list over the blocks, the first block's."""
        data = self.get(key)
        data = data[0] if isinstance(data, list) and data else data
        return default if data is None else self._checked(key, data)

    def each(self, key: str, default: int = 0) -> list[int]:
        """A number for every block."""
        data = self.get(key)
        if not isinstance(data, list):
            return [self.number(key, default)] * self.blocks
        if len(data) < self.blocks:
            raise GGUFError(
                f"{self.architecture}.{key}: {len(data)} numbers for {self.blocks} blocks"
            )
        return [self._checked(key, each) for each in data[: self.blocks]]

    def _checked(self, key: str, data: Any) -> int:
        if not isinstance(data, int) or not 0 <= data < _LARGEST:
            raise GGUFError(f"{self.architecture}.{key} is {data!r}, wanted a number")
        return int(data)


def kv_layout(architecture: str, metadata: Mapping[str, Value]) -> KVCache | None:
    """What the blocks of a model keep; None where that is not known.

    Args:
        metadata: by GGUF keys, as in `<architecture>.block_count`.

    Raises:
        GGUFError: the metadata is not what it should be.
    """
    keys = _Keys(architecture, metadata)
    if keys.blocks == 0 or architecture in _UNKNOWN:
        return None
    if keys.blocks > MAX_BLOCKS:
        raise GGUFError(f"{architecture}.block_count is {keys.blocks}, wanted at most {MAX_BLOCKS}")
    if architecture in _NO_CACHE:
        return KVCache(())
    nextn = keys.number("nextn_predict_layers")
    trunk = keys.blocks - nextn if nextn < keys.blocks else keys.blocks
    window = _window(keys)
    slides = _slides(keys, trunk) if window else [False] * keys.blocks
    states = _states(keys, trunk)
    attends = _attends(keys, trunk, states)
    widths = _widths(keys, slides)
    indexed = _indexed(keys, trunk)
    mla = keys.number("attention.key_length_mla") > 0
    blocks = (
        Block(
            keys=attends[n] * widths[n][0],
            values=attends[n] * widths[n][1] * (not mla),
            sliding=slides[n],
            index_keys=attends[n] * indexed[n][0],
            index_values=attends[n] * indexed[n][1] * (not mla),
            state=states[n],
        )
        for n in range(keys.blocks)
    )
    return KVCache(tuple(blocks), window, max(values for _, values in widths))


def _window(keys: _Keys) -> int:
    pattern = _SLIDING.get(keys.architecture)
    if pattern is None or (keys.architecture == "exaone4" and keys.blocks != 64):
        return 0
    window = keys.number("attention.sliding_window", pattern.default)
    return pattern.fixed or window if window else 0


def _slides(keys: _Keys, trunk: int) -> list[bool]:
    pattern = _SLIDING[keys.architecture]
    if isinstance(keys.get("attention.sliding_window_pattern"), list):
        return [bool(n) for n in keys.each("attention.sliding_window_pattern")]
    period = keys.number("attention.sliding_window_pattern", pattern.period)
    return [n < trunk and pattern.slides(n, period) for n in range(keys.blocks)]


def _head_lengths(keys: _Keys) -> tuple[int, int]:
    heads = keys.number("attention.head_count")
    even = keys.number("embedding_length") // heads if heads else 0
    return keys.number("attention.key_length", even), keys.number("attention.value_length", even)


def _widths(keys: _Keys, slides: list[bool]) -> list[tuple[int, int]]:
    """Numbers per token in the keys and the values of each block, if it has its own."""
    key, value = _head_lengths(keys)
    narrow_key = keys.number("attention.key_length_swa", key)
    narrow_value = keys.number("attention.value_length_swa", value)
    return [
        (heads * narrow_key, heads * narrow_value) if slide else (heads * key, heads * value)
        for heads, slide in zip(_kv_heads(keys), slides, strict=True)
    ]


def _kv_heads(keys: _Keys) -> list[int]:
    given = keys.get("attention.head_count_kv") is not None
    return keys.each("attention.head_count_kv" if given else "attention.head_count")


def _attends(keys: _Keys, trunk: int, states: list[int]) -> list[bool]:
    """Which blocks have keys and values of their own."""
    shared = keys.number("attention.shared_kv_layers")
    owners = 20 if keys.architecture == "gemma3n" else keys.blocks - shared
    cached = keys.blocks if keys.architecture in _NEXTN_CACHED else trunk
    both = keys.architecture == "falcon-h1"
    return [n < min(cached, owners) and (both or not states[n]) for n in range(keys.blocks)]


def _states(keys: _Keys, trunk: int) -> list[int]:
    """Numbers in the state of each block; 0 where there is none."""
    size, numbers = _state(keys), range(keys.blocks)
    if keys.architecture == "falcon-h1":
        return [size] * keys.blocks
    if keys.architecture in _ATTENTION_INTERVALS:
        default = _ATTENTION_INTERVALS[keys.architecture]
        interval = max(1, keys.number("full_attention_interval", default))
        recurrent = [(n + 1) % interval != 0 for n in numbers]
        if isinstance(keys.get("attention.recurrent_layers"), list):
            recurrent = [bool(n) for n in keys.each("attention.recurrent_layers")]
    else:
        mlp_alone = keys.architecture.startswith("nemotron_h")
        dense = keys.each("feed_forward_length") if mlp_alone else [0] * keys.blocks
        heads = _kv_heads(keys)
        recurrent = [heads[n] == 0 and dense[n] == 0 for n in numbers]
    return [size if n < trunk and recurrent[n] else 0 for n in numbers]


def _indexed(keys: _Keys, trunk: int) -> list[tuple[int, int]]:
    """Numbers per token that a sparse attention's indexer keeps in each block: keys, values."""
    widths = (keys.number("attention.indexer.key_length"), _head_lengths(keys)[1])
    if keys.architecture == "minimax-m3":
        dense = keys.number("leading_dense_block_count")
        own = [n >= dense for n in range(keys.blocks)]
    elif keys.architecture in _WITH_INDEXER:
        types = keys.get("attention.indexer.types")
        given = types if isinstance(types, list) else [1] * trunk
        own = [n < min(trunk, len(given)) and bool(given[n]) for n in range(keys.blocks)]
    else:
        own = [False] * keys.blocks
    return [widths if has else (0, 0) for has in own]


def _state(keys: _Keys) -> int:
    """Numbers in the state of a recurrent block (`llama_hparams::n_embd_r` + `n_embd_s`)."""
    hidden, heads = keys.number("embedding_length"), keys.number("attention.head_count")
    kernel = keys.number("ssm.conv_kernel")
    if head := keys.number("wkv.head_size"):
        return hidden * (keys.number("token_shift_count", 2) + head)
    if cached := keys.number("shortconv.l_cache"):
        return hidden * (cached - 1)
    if head := keys.number("kda.head_dim"):
        return heads * head * (3 * (kernel - 1 if kernel else 3) + head)
    inner, size = keys.number("ssm.inner_size"), keys.number("ssm.state_size")
    convolved = inner + 2 * keys.number("ssm.group_count") * size
    return max(kernel - 1, 0) * convolved + size * inner
