"""What a tensor's name tells of it, and where a file's tensors, and with them its blocks, live."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gemcut.profile import HOST

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"

# Of which a token reads rows: llama.cpp keeps these tables on the host.
_LOOKUPS = ("token_embd.", "per_layer_token_embd.", "position_embd.", "token_types.")
# Of no block by their names, of the first one to llama.cpp.
_FIRST = (
    "rope_freqs.",
    "rope_factors_long.",
    "rope_factors_short.",
    "token_embd_norm.",
    "per_layer_model_proj.",
    "per_layer_proj_norm.",
)
_BLOCK = re.compile(r"blk\.(\d{1,9})\.")
_ROUTED = re.compile(r"_(ch)?exps\.")


@dataclass(frozen=True)
class Placed:
    """A tensor of the file that will be written, and where it lives."""

    name: str
    type: str  # that most of it is in
    size: int  # bytes
    weights: int
    place: str  # "cpu", "gpu0", ...
    copied: bool = False  # out of another copy, on the host, rows are looked up
    home: str | None = None  # of its block, where the tensors do not show it
    kinds: tuple[tuple[str, int], ...] = ()  # bytes in each type, where every expert has its own

    @property
    def single(self) -> bool:
        """Whether every expert has a type of its own: the host alone computes with those."""
        return bool(self.kinds)

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """Its bytes in each type."""
        return self.kinds or ((self.type, self.size),)

    @property
    def routed(self) -> bool:
        """Whether a token uses some of its experts only."""
        return is_routed(self.name)

    @property
    def block(self) -> int | None:
        """The number of its block."""
        return block_of(self.name)

    @property
    def staged(self) -> bool:
        """Whether cards that compute prompts take it over."""
        return self.place == HOST and self.block is not None and not self.single


def homes(tensors: Iterable[Placed], blocks: int) -> tuple[str, ...]:
    """Where each block is computed and has its caches: where all of it but its experts lives."""
    found: dict[int, str] = {}
    for tensor in tensors:
        if tensor.block is None:
            continue
        if tensor.home:
            found[tensor.block] = tensor.home
        elif not tensor.routed:
            found.setdefault(tensor.block, tensor.place)
    return tuple(found.get(block, HOST) for block in range(blocks))


def staged_bytes(tensors: Iterable[Placed]) -> int:
    """Bytes of the largest tensor that a card takes over from the host to compute prompts with.

    It does so with whatever the host has of the blocks, wherever these are at home; but not with
    the output, whose rows are few, nor with experts that have a type each.
    """
    return max((each.size for each in tensors if each.staged), default=0)


def card_beside(tensor: Placed, at: Sequence[str]) -> str | None:
    """The card where a tensor's block is at home, if the tensor is experts on the host.

    Args:
        at: the homes of the blocks.
    """
    block = tensor.block
    if not tensor.routed or tensor.place != HOST or block is None or block >= len(at):
        return None
    return at[block] if at[block] != HOST else None


def is_routed(name: str) -> bool:
    """Whether a tensor holds experts of which a token uses some only."""
    return _ROUTED.search(name) is not None


def layer_of(name: str, blocks: int, tied: bool) -> int | None:
    """The layer that a tensor belongs to in llama.cpp, the output being the last; None: to none,
    since rows are looked up in it on the host.

    Args:
        blocks: of the model.
        tied: whether the embedding is the output's matrix, too.
    """
    if (block := block_of(name)) is not None:
        return block
    if name == EMBEDDING and tied:
        return blocks
    if name.startswith(_LOOKUPS):
        return None
    return 0 if name.startswith(_FIRST) and blocks else blocks


def block_of(name: str) -> int | None:
    """The number of a tensor's block; None outside the blocks."""
    match = _BLOCK.match(name)
    return int(match[1]) if match else None
