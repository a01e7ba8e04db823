"""The memory ledger: where every byte goes, place by place, before anything is loaded.

What a plan chooses are tensors and their places; what a context takes beside them is `Fixed`, out
of the metadata alone. Weights on the host count in full, whether they lie in pinned memory, in a
layout of the CPU's own, or in the page cache: pages that are read for every token and do not stay
in memory come from the disk each time. A copy in the CPU's layout takes the place of the file's
pages, which nothing reads again, and loading needs no more than they can give up.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from gemcut.engine import ContextOptions
from gemcut.errors import PlanError
from gemcut.gguf_file import Value
from gemcut.kv_cache import Block, KVCache
from gemcut.kv_layout import kv_layout
from gemcut.profile import HOST, Processor, Profile
from gemcut.runtime.memory.activations import (
    attention_flop,
    compute_bytes,
    crossing_bytes,
    dequantized_bytes,
    pool_bytes,
    widths,
)
from gemcut.runtime.memory.tensors import Placed, homes, staged_bytes

# On a card, for what no formula says: cuBLAS' workspace, pools that grow in steps of 2 MiB, CUDA's
# recorded graphs. llama.cpp's own fitting keeps 1 GiB; the driver's context (some 330 MiB) has to
# come out of that, and is in `Processor.reserve` here.
CARD_MARGIN = 256 << 20
# On the host: the interpreter, its libraries and a vocabulary of 262144 tokens, which were 88 MB,
# the CPU's own copies of activations (with types per expert 16 MiB of rows more, or those of one
# expert in a ubatch), a server and its texts.
HOST_MARGIN = 512 << 20
LEAST_OFFLOADED = 32  # tokens of a ubatch that a card computes with the host's experts (ggml-cuda)


@dataclass(frozen=True)
class Fixed:
    """What a context takes beside the tensors, in bytes, and how it reads a prompt."""

    caches: tuple[int, ...]  # keys, values and states of each block, at full context
    reads: tuple[int, ...]  # of them, what one token reads and writes
    compute: int  # compute buffer, of any place; a host that computes experts only needs less
    outputs: int  # logits, on the host
    dequantized: int  # in a card's compute buffer: an F16 copy of quantized keys and values
    pool: int  # of a card, beside the compute buffer
    tokens: int  # of a ubatch
    offloads: bool  # whether a card computes a ubatch with the host's experts
    kind: str  # ggml type of the keys
    crossing: int = 0  # in a card's compute buffer, beside what the host computes of a block
    attention: tuple[int, ...] = ()  # FLOP of each block for a token and a cell it attends to
    spans: tuple[int, ...] = ()  # cells that it attends to at most
    sharing: tuple[float, ...] = ()  # of each block, query heads to a head of keys and values

    def on_card(self, staged: int = 0) -> int:
        """Bytes for computing on a card.

        Args:
            staged: bytes of the largest tensor that the host has of the blocks (`staged_bytes`):
                prompts are computed on the card, which takes such a tensor into its compute
                buffer whole, one at a time (ggml-backend.cpp begins a new split for each).
                Attention is over by then, so that room is used twice.
        """
        beside = self.pool + self.crossing
        return self.compute + beside + max(self.dequantized, staged * self.offloads)


def fixed(
    metadata: Mapping[str, Value], options: ContextOptions, depth: int | None = None
) -> Fixed:
    """What a context with these options takes, whatever the tensors' types and places.

    Args:
        depth: tokens that a sequence holds when one more is generated; None: all that it can.

    Raises:
        PlanError: the architecture's caches are not known, or do not divide into their types.
        GGUFError: the metadata is not what it should be.
    """
    named = metadata.get("general.architecture")
    architecture = str(named.data) if named else "unknown"
    cache = kv_layout(architecture, metadata)
    if cache is None:
        raise PlanError(
            f"what a {architecture} model keeps of its context is not known, so its memory cannot "
            "be planned: give a --size or a --type instead"
        )
    model = widths(metadata)
    tokens = min(options.n_ubatch, options.n_ctx)
    rows = min(options.n_outputs or options.n_batch or options.n_ctx, options.n_ctx)
    flop = attention_flop(metadata, cache)
    return Fixed(
        caches=_each(cache, options),
        reads=_reads(cache, options, depth),
        compute=compute_bytes(model, cache, options),
        outputs=4 * rows * model.vocabulary,
        dequantized=dequantized_bytes(cache, options),
        pool=pool_bytes(model, options),
        crossing=crossing_bytes(model, options),
        tokens=tokens,
        offloads=options.op_offload and tokens >= LEAST_OFFLOADED,
        kind=options.type_k,
        attention=flop,
        sharing=tuple(map(_sharing, flop, cache.blocks)),
        spans=_spans(cache, options),
    )


def rooms(profile: Profile, needs: Fixed, staged: int = 0) -> tuple[int, ...]:
    """Bytes that each place has for tensors and caches, the host first; below 0 where even what
    comes first does not fit.

    Args:
        staged: as `Fixed.on_card` takes it.
    """
    return tuple(
        place.memory - sum(_first(place, needs, staged).values()) for place in profile.places
    )


def ledger(
    profile: Profile, needs: Fixed, tensors: Iterable[Placed], role_of: Callable[[str], str]
) -> dict[str, dict[str, int]]:
    """Where the bytes of every place go: {place: {what: bytes}}; together they are its memory.

    "free" is what is left, below 0 where the plan does not fit. A place without tensors computes
    nothing. A host of no memory is one that is not planned for: there 0 is left.

    Args:
        role_of: the role of a tensor's name, under which its weights are summed.

    Raises:
        PlanError: a tensor lives at a place that the machine does not have.
    """
    placed = list(tensors)
    staged = staged_bytes(placed) if needs.offloads else 0
    pages = {place.name: _first(place, needs, staged) for place in profile.places}
    for tensor in placed:
        if tensor.place not in pages:
            raise PlanError(
                f"{tensor.name} is to live at {tensor.place}, this machine has {', '.join(pages)}: "
                "plan again for it"
            )
        for place in (tensor.place, HOST) if tensor.copied else (tensor.place,):
            _add(pages[place], f"weights: {role_of(tensor.name)}", tensor.size)
    for home, size in zip(homes(placed, len(needs.caches)), needs.caches, strict=True):
        _add(pages[home], "kv", size)
    # llama.cpp has the first one that can do it compute prompts with the host's tensors.
    first = next((card for card in profile.cards if card.link), None) if staged else None
    for processor in profile.places:
        _close(pages[processor.name], processor, processor is first)
    return pages


def _first(place: Processor, needs: Fixed, staged: int) -> dict[str, int]:
    """What is taken before any tensor."""
    if place.name == HOST:
        used = {"margin": HOST_MARGIN, "compute": needs.compute, "outputs": needs.outputs}
    else:
        used = {"margin": CARD_MARGIN, "compute": needs.on_card(staged)}
    return {"reserve": place.reserve} | used


def _add(page: dict[str, int], kind: str, size: int) -> None:
    page[kind] = page.get(kind, 0) + size


def _close(page: dict[str, int], place: Processor, offloads: bool) -> None:
    """Say what is left: of a host that is not planned for nothing. A card without tensors computes
    nothing, unless it does with the host's."""
    idle = place.name != HOST and not offloads
    if idle and not any(kind.startswith("weights") for kind in page):
        page["compute"] = 0
    page["free"] = place.memory - sum(page.values()) if place.memory else 0


def _each(cache: KVCache, options: ContextOptions) -> tuple[int, ...]:
    """Bytes of the caches of every block."""
    alone = (replace(cache, blocks=(block,)) for block in cache.blocks)
    return tuple(one.sizes(options).total for one in alone)


def _sharing(flop: int, block: Block) -> float:
    """Query heads to a head of keys and values: two FLOP for every number that one head reads."""
    return flop / 2 / (block.keys + block.values) if block.keys else 1.0


def _reads(cache: KVCache, options: ContextOptions, depth: int | None) -> tuple[int, ...]:
    """Bytes of every block's caches that a token of one sequence reads.

    Attention goes over all cells that are in use, in a sliding window's cache those past the
    window, too, which it then ignores. A state is read and written.
    """
    tokens = min(_alone(options).n_ctx, depth or options.n_ctx)
    one = replace(_alone(options), n_ctx=max(1, tokens))
    sizes = (replace(cache, blocks=(block,)).sizes(one) for block in cache.blocks)
    return tuple(size.full + size.swa + 2 * size.recurrent for size in sizes)


def _spans(cache: KVCache, options: ContextOptions) -> tuple[int, ...]:
    full, swa = cache.cells(_alone(options))
    return tuple(swa if block.sliding else full for block in cache.blocks)


def _alone(options: ContextOptions) -> ContextOptions:
    """The context as one of its sequences sees it."""
    streams = 1 if options.kv_unified else options.n_seq
    return replace(options, n_seq=1, n_ctx=max(1, options.n_ctx // streams))
