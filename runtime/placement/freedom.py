"""What may go where: a file's tensors in groups that move together, within what the user has fixed.

All of a layer but its routed experts lives where the layer is at home. Each tensor of experts may
stay on the host all the same. What an override names is where it says, wherever its layer is.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gemcut.errors import UsageError
from gemcut.profile import HOST
from gemcut.runtime.memory.tensors import Placed
from gemcut.runtime.placement.contents import Contents
from gemcut.runtime.placement.given import Given

_CPU = "CPU"  # llama.cpp's name of the host's memory


@dataclass(frozen=True)
class Group:
    """Tensors that live at one place."""

    name: str
    tensors: tuple[Placed, ...]
    layer: int
    roams: bool = False  # or on the host, wherever the layer is at home
    copied: bool = False
    places: frozenset[int] | None = None  # the only ones allowed; None: any


@dataclass(frozen=True)
class Freedom:
    """The groups of a file, what does not move, and where each layer may be at home."""

    groups: tuple[Group, ...]
    pinned: tuple[Placed, ...]  # at their places: tables, and what overrides name
    overridden: frozenset[str]  # names of those that overrides name
    homes: tuple[tuple[int, ...], ...]  # of each layer, the output's last; (): any


def freedom(contents: Contents, given: Given, names: Sequence[str]) -> Freedom:
    """What is free after what was given.

    Args:
        names: of the cards in their order, as llama.cpp calls them.

    Raises:
        UsageError: what was given is about a device that is not there.
    """
    pinned, overridden, groups = [], set(), []
    layers: dict[int, list[Placed]] = defaultdict(list)
    places = _overrides(given, names)
    for tensor in contents.tensors:
        layer = contents.layer(tensor)
        place = next((place for each, place in places if each.search(tensor.name)), None)
        overridden |= {tensor.name} if place else set()
        if place and not (tensor.routed and place == HOST):
            _check_single(tensor)
            pinned.append(replace(tensor, place=place))
        elif layer is None:
            pinned.append(tensor)
        elif tensor.routed:
            stays = place == HOST or layer < (given.cpu_moe or 0)
            allowed = frozenset({0}) if stays else None
            groups.append(Group(tensor.name, (tensor,), layer, roams=True, places=allowed))
        elif contents.copied(tensor):
            groups.append(Group(tensor.name, (tensor,), layer, copied=True))
        else:
            layers[layer].append(tensor)
    groups += [Group(f"layer {n}", tuple(own), n) for n, own in layers.items()]
    homes = homes_of(given, contents.blocks + 1, len(names))
    return Freedom(tuple(groups), tuple(pinned), frozenset(overridden), homes)


def _check_single(tensor: Placed) -> None:
    if tensor.single:
        raise UsageError(
            f"{tensor.name} is to live on a card, but has a type for every expert, and the CPU "
            "alone computes with those: leave out that override, or `gemcut convert` the file "
            "into a stock one"
        )


def _overrides(given: Given, names: Sequence[str]) -> list[tuple[re.Pattern[str], str]]:
    known = {_CPU: HOST} | {name: f"gpu{index}" for index, name in enumerate(names)}
    found = []
    for pattern, device in given.overrides:
        if device not in known:
            hint = "" if given.devices else " (-dev says what another machine's are called)"
            raise UsageError(
                f"override {pattern}={device}: there is no such device; wanted "
                f"{', '.join(known)}{hint}"
            )
        try:
            found.append((re.compile(pattern), known[device]))
        except re.error as error:
            raise UsageError(f"override {pattern!r:.80}: no regular expression: {error}") from None
    return found


def homes_of(given: Given, layers: int, cards: int) -> tuple[tuple[int, ...], ...]:
    """Where each layer may be at home by -ngl, -ts, -sm none and -mg; (): anywhere."""
    on_cards = _cards(given, cards)
    fixed = given.gpu_layers is not None or given.tensor_split or len(on_cards) < cards
    if not cards or not fixed:
        return ()
    count = layers if given.gpu_layers is None or given.gpu_layers < 0 else given.gpu_layers
    count = min(layers, count) if on_cards else 0
    shares = given.tensor_split[:cards] if len(on_cards) > 1 else ()
    return tuple((0,) for _ in range(layers - count)) + tuple(
        _at(shares, layer, count) or on_cards for layer in range(count)
    )


def _cards(given: Given, cards: int) -> tuple[int, ...]:
    """The places of the cards that are used."""
    if given.split_mode != "none":
        return tuple(range(1, cards + 1))
    main = given.main_gpu or 0
    if main >= cards > 0:
        raise UsageError(f"main GPU {main}: there are {cards}, the first is 0")
    return (main + 1,) if 0 <= main < cards else ()


def _at(shares: Sequence[float], layer: int, count: int) -> tuple[int, ...]:
    """The card of a layer by -ts: where its share of all begins (llama.cpp's `load_tensors`)."""
    ends = np.cumsum(np.array(shares, np.float32))
    if not len(ends) or not ends[-1]:
        return ()
    return (int(np.searchsorted(ends / ends[-1], np.float32(layer / count), "right")) + 1,)
