"""A model's caches in a few numbers, for contexts that people ask for.

As JSON: `full_blocks`, `sliding_blocks`, `recurrent_blocks` and `shared_blocks` (without keys and
values of their own); `window` in tokens; `compressed` (keys alone are kept, as in MLA); then by
type of the keys and values ("f16", "q8_0"; null where a row does not divide into its blocks)
`per_token` of the context and `per_cell` of the windows in bytes; `cells`, the most a window takes
with 512 tokens computed at once; `state` in bytes; `contexts`: [{tokens, f16, q8_0}] in bytes, for
one sequence.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gemcut.engine import ContextOptions
from gemcut.errors import PlanError
from gemcut.kv_cache import KVCache

TYPES = ("f16", "q8_0")
CONTEXTS = (8 << 10, 32 << 10, 128 << 10)
_LONGEST = 1 << 30

Sizes = Mapping[str, int | None]  # bytes by type


@dataclass(frozen=True)
class CacheSummary:
    """What `to_dict` says; see the module."""

    full_blocks: int
    sliding_blocks: int
    recurrent_blocks: int
    shared_blocks: int
    window: int
    compressed: bool
    per_token: Sizes
    per_cell: Sizes
    cells: int
    state: int
    contexts: Mapping[int, Sizes]

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON knows it."""
        contexts = [{"tokens": tokens, **sizes} for tokens, sizes in self.contexts.items()]
        return asdict(self) | {"contexts": contexts}


def summary(cache: KVCache, longest: int) -> CacheSummary:
    """The summary of a model's caches; `longest` is the context it was trained for, in tokens."""
    kept = [block for block in cache.blocks if block.keys]
    longest = min(longest or CONTEXTS[0], _LONGEST)
    contexts = sorted({tokens for tokens in CONTEXTS if tokens < longest} | {longest})
    options = ContextOptions(n_ctx=longest, n_batch=512)
    return CacheSummary(
        full_blocks=sum(not block.sliding for block in kept),
        sliding_blocks=sum(block.sliding for block in kept),
        recurrent_blocks=sum(block.state > 0 for block in cache.blocks),
        shared_blocks=sum(block.empty for block in cache.blocks),
        window=cache.window,
        compressed=bool(kept) and not any(block.values for block in kept),
        per_token=_by_type(lambda kind: cache.per_token(kind)),
        per_cell=_by_type(lambda kind: cache.per_token(kind, sliding=True)),
        cells=cache.cells(options)[1] if cache.window else 0,
        state=cache.state_bytes,
        contexts={tokens: _sizes(cache, replace(options, n_ctx=tokens)) for tokens in contexts},
    )


def _sizes(cache: KVCache, options: ContextOptions) -> Sizes:
    return _by_type(lambda kind: cache.sizes(replace(options, type_k=kind, type_v=kind)).total)


def _by_type(size: Callable[[str], int]) -> Sizes:
    found: dict[str, int | None] = {}
    for kind in TYPES:
        try:
            found[kind] = size(kind)
        except PlanError:  # rows that do not divide into the type's blocks
            found[kind] = None
    return found
