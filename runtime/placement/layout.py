"""Places in llama.cpp's own words: layers on cards, shares of the cards, and exceptions.

llama.cpp gives whole layers to cards, the last ones, in order; what is left to say of single
tensors is that they stay on the host. The exceptions are regular expressions (ECMAScript, searched
in the name, the first match wins). Those written here are anchored at both ends and name blocks one
by one, so that no two match the same tensor and their order means nothing.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gemcut.errors import PlanError
from gemcut.profile import HOST
from gemcut.runtime.memory.tensors import EMBEDDING, OUTPUT, Placed, homes, layer_of

# Names no tensor. Without any override llama.cpp computes on several cards in a pipeline, which
# takes memory that no ledger has.
NOTHING = "^$"

_BLOCK = re.compile(r"blk\.(\d{1,9})\.(.+)")
_SPECIAL = re.compile(r"([.^$*+?()\[\]{}|\\])")
# llama-quantize splits its file at white space and at "=", and reads patterns as lower case;
# llama-server splits overrides at "," and "=".
_PLAIN = re.compile(r"[a-z0-9_.\-]+")


@dataclass(frozen=True)
class Layout:
    """Where llama.cpp is to put a model's tensors."""

    gpu_layers: int  # of the last ones, the output counted as one
    split: tuple[int, ...]  # of them, on each card of the machine, if it has several
    host: tuple[str, ...]  # expressions for what stays on the host all the same


def layout(
    places: Mapping[str, str],
    cards: int = 0,
    at: Sequence[str] | None = None,
    apart: Collection[str] = (),
) -> Layout:
    """Places of tensors, as llama.cpp is told of them.

    Args:
        places: of all tensors of the file.
        cards: of the machine, those without a layer among them: untold, llama.cpp uses all.
        at: the homes of the blocks and of the output; None: where their tensors live.
        apart: tensors that llama.cpp is told of by other means.

    Raises:
        PlanError: it cannot be told of such places.
    """
    layers = layers_of(places) if at is None else list(at)
    if layers != sorted(layers, key=_number):
        raise PlanError(
            f"the plan's layers are at {', '.join(dict.fromkeys(layers))}, in this order; "
            "llama.cpp fills the host first and then the cards: plan again"
        )
    count = max(cards, 1 + max(map(_number, layers)))
    split = tuple(layers.count(f"gpu{index}") for index in range(count))
    return Layout(
        gpu_layers=sum(place != HOST for place in layers),
        split=split if len(split) > 1 and any(split) else (),
        host=tuple(expressions(_kept_back(places, layers, apart))),
    )


def layers_of(places: Mapping[str, str]) -> list[str]:
    """The place of each block, and last that of the output.

    Raises:
        PlanError: there are fewer tensors than blocks.
    """
    placed = [Placed(name, "", 0, 0, place) for name, place in places.items()]
    last = max((tensor.block for tensor in placed if tensor.block is not None), default=-1)
    if last >= len(placed):
        raise PlanError(f"the plan has {len(placed)} tensors, one of them in block {last}")
    found = list(homes(placed, last + 1))
    output = places.get(OUTPUT, places.get(EMBEDDING, HOST))
    # llama.cpp computes the output where the last blocks are; its weights may stay on the host.
    return [*found, output if output != HOST or not found else found[-1]]


def expressions(names: Iterable[str]) -> list[str]:
    """Regular expressions that match these tensors and no others.

    Raises:
        PlanError: a name that llama.cpp's options could not hold.
    """
    blocks: dict[str, list[int]] = defaultdict(list)
    found = []
    for name in names:
        if not _PLAIN.fullmatch(name):
            raise PlanError(f"{name}: llama.cpp's options cannot name this tensor")
        if match := _BLOCK.fullmatch(name):
            blocks[match[2]].append(int(match[1]))
        else:
            found.append(f"^{_escaped(name)}$")
    alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for tail, numbers in blocks.items():
        alike[tuple(sorted(numbers))].append(_escaped(tail))
    found += (
        rf"^blk\.{_any([str(number) for number in numbers])}\.{_any(sorted(tails))}$"
        for numbers, tails in alike.items()
    )
    return sorted(found)


def _any(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"({'|'.join(words)})"


def _escaped(name: str) -> str:
    return _SPECIAL.sub(r"\\\1", name)


def _kept_back(
    places: Mapping[str, str], layers: Sequence[str], apart: Collection[str]
) -> list[str]:
    """The tensors on the host that llama.cpp would put on a card with their layer."""
    kept, tied = [], OUTPUT not in places
    for name, place in places.items():
        layer = layer_of(name, len(layers) - 1, tied)
        own = HOST if layer is None else layers[layer]
        if name in apart or place == own:
            continue
        if place != HOST:
            raise PlanError(
                f"{name} is to live at {place}, its layer at {own}: llama.cpp's command line "
                "cannot say that"
            )
        kept.append(name)
    return kept


def _number(place: str) -> int:
    """The order of places: the host, then the cards."""
    return -1 if place == HOST else int(place.removeprefix("gpu"))
