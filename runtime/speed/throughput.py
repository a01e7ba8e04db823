"""How fast a plan would run, to first order: bytes over rates, FLOP over rates.

A token in decoding reads what is active of every tensor, and its caches; where the experts of a
block are on the host while the block is on a card, the two speak to each other once more. A prompt
is computed ubatch by ubatch; a card computes with the host's tensors, too, and has to be given
them, of experts those that the ubatch hits. Nothing overlaps: places take turns, as in llama.cpp.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from gemcut.gguf_file import Value
from gemcut.profile import HOST, Processor, Profile
from gemcut.runtime.memory.ledger import LEAST_OFFLOADED, Fixed
from gemcut.runtime.memory.tensors import (
    EMBEDDING,
    OUTPUT,
    Placed,
    block_of,
    card_beside,
    homes,
    is_routed,
)

_OPERATIONS = 3  # of a graph, for each tensor of the file
_LOOKUPS = (EMBEDDING, "per_layer_token_embd.weight")  # of which a token reads one row


@dataclass(frozen=True)
class Speed:
    """A predicted speed: seconds for a token, with their standard error."""

    seconds: float
    se: float

    @property
    def per_second(self) -> float:
        """Tokens in a second."""
        return 1 / self.seconds if self.seconds else float("inf")


def active_shares(metadata: Mapping[str, Value], names: Collection[str]) -> dict[str, float]:
    """The share of each tensor's bytes that one token reads.

    Of routed experts those that are used; of a table that rows are looked up in nothing, unless it
    is the output, too; of blocks that only draft tokens nothing; of all else everything.

    Args:
        names: of all tensors of the file.
    """
    architecture = metadata["general.architecture"].data
    number = {
        key: _largest(metadata.get(f"{architecture}.{key}"))
        for key in ("block_count", "nextn_predict_layers", "expert_count", "expert_used_count")
    }
    # Of a model whose blocks nobody counted all tensors are read.
    experts, blocks = number["expert_count"], number["block_count"] or math.inf
    trunk = blocks - number["nextn_predict_layers"]
    used = number["expert_used_count"] / experts if experts else 1.0
    tied = OUTPUT not in names

    def share(name: str) -> float:
        block = block_of(name)
        if block is not None and block >= trunk:
            return 0.0
        if name in _LOOKUPS:
            return float(name == EMBEDDING and tied)
        return used if is_routed(name) else 1.0

    return {name: share(name) for name in names}


def token_seconds(processor: Processor, kind: str, active: float) -> float:
    """Seconds in which a processor reads so many bytes of a tensor of a ggml type for one token."""
    return active / processor.rate(kind)


def starting_seconds(profile: Profile, tensors: int) -> float:
    """Seconds that the operations of a token, or a ubatch, take however small they are.

    For each tensor of the file about three: 2.6 to 3.2 were counted in llama.cpp's graphs. Beside
    its product there are rotations, activations, sums over experts.
    """
    return _OPERATIONS * tensors * profile.operation


def cache_seconds(processor: Processor, kind: str, read: int) -> float:
    """Seconds in which it reads so many bytes of keys and values of a ggml type for one token."""
    return read / processor.cache_rate(kind)


@dataclass(frozen=True)
class Prices:
    """What tensors and caches cost in seconds at their places: for a token, and for a ubatch.

    shares: of all tensors, see `active_shares`. prompt: its tokens, of which each ubatch takes as
    many; None: a ubatch.
    """

    profile: Profile
    needs: Fixed
    shares: Mapping[str, float]
    prompt: int | None = None

    @cached_property
    def places(self) -> dict[str, Processor]:
        """By name."""
        return {place.name: place for place in self.profile.places}

    @cached_property
    def ubatches(self) -> int:
        """Number of ubatches of the prompt."""
        return -(-(self.prompt or 1) // self.needs.tokens)

    @cached_property
    def tokens(self) -> float:
        """Tokens of the mean ubatch."""
        return (self.prompt or self.needs.tokens) / self.ubatches

    @cached_property
    def offloader(self) -> Processor | None:
        """The card that computes a ubatch with the host's tensors: llama.cpp asks the first one
        that would (ggml-backend.cpp, `ggml_backend_sched_backend_id_from_cur`)."""
        if not self.needs.offloads or self.tokens < LEAST_OFFLOADED:
            return None
        return next((card for card in self.profile.cards if card.link), None)

    def token(self, tensor: Placed) -> float:
        """Seconds of a tensor for a token that is generated."""
        place, share = self.places[tensor.place], self.shares[tensor.name]
        return sum(token_seconds(place, kind, size * share) for kind, size in tensor.parts)

    def ubatch(self, tensor: Placed) -> float:
        """Seconds of a tensor for a ubatch. Logits are wanted of a prompt's last token alone, so
        the output costs nothing."""
        if tensor.name in (EMBEDDING, OUTPUT):
            return 0.0
        share, place, seconds = self.shares[tensor.name], self.places[tensor.place], 0.0
        read = hit(share, self.tokens)
        if tensor.place == HOST and self.offloader and not tensor.single:
            place, seconds = self.offloader, read * tensor.size / self.offloader.link
        return seconds + _product(place, tensor, share * self.tokens, read)

    def unstaged(self, tensor: Placed) -> float:
        """Seconds by which a ubatch takes longer if the host alone may compute with a tensor of
        its own."""
        alone = replace(tensor, kinds=tensor.parts)
        return max(0.0, self.ubatch(alone) - self.ubatch(tensor))

    def reading(self, block: int, place: str) -> float:
        """Seconds of a block's caches, which are at this place, for a token that is generated.

        A CPU goes over keys and values anew for each query head that shares them.
        """
        seconds = cache_seconds(self.places[place], self.needs.kind, self.needs.reads[block])
        return (
            seconds * self.needs.sharing[block] if place == HOST and self.needs.sharing else seconds
        )

    def attending(self, block: int, place: str) -> float:
        """Seconds of a block's attention, at this place, for the mean ubatch."""
        rate = self.places[place].attention_rate(self.needs.kind)
        if not self.needs.attention or not rate:
            return 0.0
        return self.needs.attention[block] * self.tokens * self._cells(block) / rate

    def _cells(self, block: int) -> float:
        """Cells that a ubatch attends to, over all of the prompt: those before it and its own."""
        span = self.needs.spans[block]
        growing = min(self.ubatches, int(span // self.tokens))
        cells = self.tokens * growing * (growing + 1) / 2 + span * (self.ubatches - growing)
        return cells / self.ubatches

    def besides(self, placed: Collection[Placed], at: Sequence[str]) -> float:
        """Seconds of a token, or a ubatch, beside its products and caches."""
        apart = {tensor.block for tensor in placed if card_beside(tensor, at)}
        return starting_seconds(self.profile, len(placed)) + len(apart) * self.profile.sync


def decode_speed(
    profile: Profile, needs: Fixed, tensors: Iterable[Placed], shares: Mapping[str, float]
) -> Speed:
    """Speed of generating with as much in the context as `needs` is about.

    Args:
        shares: of all tensors, see `active_shares`.
    """
    prices, placed = Prices(profile, needs, shares), list(tensors)
    at = homes(placed, len(needs.caches))
    seconds = prices.besides(placed, at) + sum(map(prices.token, placed))
    seconds += sum(prices.reading(block, home) for block, home in enumerate(at))
    return Speed(seconds, seconds * profile.doubt)


def prefill_speed(
    profile: Profile,
    needs: Fixed,
    tensors: Iterable[Placed],
    shares: Mapping[str, float],
    prompt: int | None = None,
) -> Speed:
    """Speed of reading a prompt of so many tokens; None: of one ubatch."""
    prices, placed = Prices(profile, needs, shares, prompt), list(tensors)
    at = homes(placed, len(needs.caches))
    seconds = prices.besides(placed, at) + sum(map(prices.ubatch, placed))
    seconds += sum(prices.attending(block, home) for block, home in enumerate(at))
    seconds /= prices.tokens
    return Speed(seconds, seconds * profile.doubt)


def hit(share: float, tokens: float) -> float:
    """Share of the experts that some of these tokens use, if each uses any with equal chance.

    Real tokens are alike, so fewer are hit (70 to 75 % of 128 by 512 tokens with 4 each, instead of
    all): what is predicted is rather too slow.
    """
    return float(1 - max(0.0, 1 - share) ** tokens)


def _product(place: Processor, tensor: Placed, tokens: float, read: float) -> float:
    """Seconds of a tensor's product with so many tokens: of its FLOP, or of reading this share."""
    flops = place.batch_rate(tensor.type, tensor.routed)
    computing = 2 * tensor.weights * tokens / flops if flops else 0.0
    reading = sum(read * size / place.rate(kind) for kind, size in tensor.parts)
    return max(computing, reading)


def _largest(value: Value | None) -> int:
    data: Any = value.data if value else 0
    data = max(data, default=0) if isinstance(data, list) else data
    return data if isinstance(data, int) else 0
