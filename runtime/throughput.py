"""How fast a plan would run, to first order: bytes over rates, FLOP over rates.

A token in decoding reads what is active of every tensor, and its caches; where the experts of a
block are on the host while the block is on a card, the two speak to each other once more. A prompt
is computed ubatch by ubatch; a card computes with the host's experts, too, and has to be given
those that the ubatch hits. Nothing overlaps: places take turns, as in llama.cpp.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemcut.gguf_file import Value
from gemcut.profile import Processor, Profile
from gemcut.runtime.ledger import Fixed, Placed, block_of, card_beside, homes, is_routed

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_LOOKUPS = (_EMBEDDING, "per_layer_token_embd.weight")  # of which a token reads one row


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
    tied = _OUTPUT not in names

    def share(name: str) -> float:
        block = block_of(name)
        if block is not None and block >= trunk:
            return 0.0
        if name in _LOOKUPS:
            return float(name == _EMBEDDING and tied)
        return used if is_routed(name) else 1.0

    return {name: share(name) for name in names}


def token_seconds(processor: Processor, kind: str, active: float) -> float:
    """Seconds in which a processor reads so many bytes of a tensor of a ggml type for one token."""
    return active / processor.rate(kind)


def cache_seconds(processor: Processor, kind: str, read: int) -> float:
    """Seconds in which it reads so many bytes of keys and values of a ggml type for one token."""
    return read / processor.rate(kind)


def decode_speed(
    profile: Profile, needs: Fixed, tensors: Iterable[Placed], shares: Mapping[str, float]
) -> Speed:
    """Speed of generating with a full context.

    Args:
        shares: of all tensors, see `active_shares`.
    """
    places, placed = _places(profile), list(tensors)
    at = homes(placed, len(needs.caches))
    seconds = _besides(profile, placed, at)
    for tensor in placed:
        active = tensor.size * shares[tensor.name]
        seconds += token_seconds(places[tensor.place], tensor.type, active)
    for home, read in zip(at, needs.reads, strict=True):
        seconds += cache_seconds(places[home], needs.kind, read)
    return Speed(seconds, seconds * profile.doubt)


def prefill_speed(
    profile: Profile, needs: Fixed, tensors: Iterable[Placed], shares: Mapping[str, float]
) -> Speed:
    """Speed of reading a prompt of many ubatches, without what attention over a long one takes.

    Logits are wanted of its last token alone, so the output costs nothing.
    """
    places, placed = _places(profile), list(tensors)
    at = homes(placed, len(needs.caches))
    seconds = _besides(profile, placed, at)
    for tensor in placed:
        if tensor.name in (_EMBEDDING, _OUTPUT):
            continue
        share, place = shares[tensor.name], places[tensor.place]
        read = tensor.size * hit(share, needs.tokens)
        card = places.get(card_beside(tensor, at) or "")
        if card and card.link and needs.offloads:
            seconds, place = seconds + read / card.link, card
        seconds += _product(place, tensor, share * needs.tokens, read)
    seconds /= needs.tokens
    return Speed(seconds, seconds * profile.doubt)


def hit(share: float, tokens: int) -> float:
    """Share of the experts that some of these tokens use, if each uses any with equal chance.

    Real tokens are alike, so fewer are hit (70 to 75 % of 128 by 512 tokens with 4 each, instead of
    all): what is predicted is rather too slow.
    """
    return float(1 - (1 - share) ** tokens)


def _product(place: Processor, tensor: Placed, tokens: float, read: float) -> float:
    """Seconds of a tensor's product with so many tokens: of its FLOP, or of reading it."""
    computing = 2 * tensor.weights * tokens / place.flops if place.flops else 0.0
    return max(computing, read / place.rate(tensor.type))


def _besides(profile: Profile, placed: Iterable[Placed], at: Sequence[str]) -> float:
    """Seconds of a computation beside its products."""
    apart = {tensor.block for tensor in placed if card_beside(tensor, at)}
    return profile.overhead + len(apart) * profile.sync


def _places(profile: Profile) -> dict[str, Processor]:
    return {place.name: place for place in profile.places}


def _largest(value: Value | None) -> int:
    data: Any = value.data if value else 0
    data = max(data, default=0) if isinstance(data, list) else data
    return data if isinstance(data, int) else 0
