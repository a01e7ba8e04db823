"""Mixtures: stacks in which every expert has a type of its own, as further options of the program.

For a price of a byte every expert takes the type whose loss and bytes together cost the least. As
the price falls, one expert after the other takes the next larger type of the stack's hull, those
first on which most of the error is: so the stack goes along the lower convex hull of all that it
could be, and nothing of the same size loses less than a point of it. Some of these are offered.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from gemcut import ggml
from gemcut.quantize.choices import Way
from gemcut.quantize.sample import Doubles, Numbers
from gemcut.runtime.placement.problem import Option
from gemcut.tensor_sensitivity import TensorSensitivity

POINTS = 24  # of a stack: what lies between two of them loses up to two percent less than a chord
_LEAST = 1e-4  # of the largest loss: below it points are not told apart


def hull(shares: Doubles, losses: Doubles, sizes: Doubles, points: int = POINTS) -> list[Numbers]:
    """Types of all experts at points of a stack's hull, from the smallest to the largest.

    Args:
        shares: float64 [experts], of the loss, whatever the type.
        losses, sizes: float64 [types], of the stack in one type.
        points: how many at most, about evenly by the logarithm of the loss; both ends are there.

    Returns:
        Each a list [experts] of types, as numbers.
    """
    types = _convex(losses, sizes)
    saved = np.outer(-np.diff(losses[types]), shares)  # by a step to the next type, of each expert
    order = np.argsort(-(saved / np.diff(sizes[types])[:, None]), axis=None, kind="stable")
    experts = order % len(shares)
    left = losses[types[0]] * shares.sum() - np.cumsum([0.0, *saved.ravel()[order]])
    counts = _spread(left, points)
    return [types[np.bincount(experts[:count], minlength=len(shares))] for count in counts]


def _convex(losses: Doubles, sizes: Doubles) -> Numbers:
    """The types on the lower convex hull of size and loss, by size."""
    found: list[int] = []
    for each in np.lexsort((losses, sizes)).tolist():
        if found and losses[each] >= losses[found[-1]]:
            continue
        while len(found) > 1 and _slope(losses, sizes, *found[-2:]) <= _slope(
            losses, sizes, found[-1], each
        ):
            found.pop()
        found.append(each)
    return np.array(found)


def _slope(losses: Doubles, sizes: Doubles, small: int, large: int) -> float:
    """Loss saved per byte."""
    return float((losses[small] - losses[large]) / (sizes[large] - sizes[small]))


def _spread(left: Doubles, points: int) -> list[int]:
    """So many numbers of steps, about evenly by the logarithm of the loss that is left."""
    last = len(left) - 1
    if not left[0] > 0:  # nothing is lost anyway
        return [0]
    wanted = np.geomspace(left[0], max(left[-1], _LEAST * left[0]), points - 1)
    found = np.minimum(np.searchsorted(-left, -wanted), last)
    return sorted({0, last, *found.tolist()})


def mixed(
    known: TensorSensitivity, found: Sequence[tuple[Way, Option]], floor: float
) -> Iterator[tuple[Way, Option]]:
    """Mixtures of what a stack may be as a whole: how each is written, and its price.

    Args:
        found: what differs in type alone.
        floor: bits per weight, below which a mixture is below the default range.
    """
    if not found:
        return
    losses = np.array([option.loss for _, option in found])
    sizes = np.array([option.size for _, option in found], float)
    for number, types in enumerate(hull(np.array(known.experts), losses, sizes)):
        if len(np.unique(types)) > 1:
            ways, options = zip(*(found[each] for each in types), strict=True)
            yield _way(known, ways, floor), _option(known, options, f"mixture {number}")


def _way(known: TensorSensitivity, ways: Sequence[Way], floor: float) -> Way:
    types = tuple(way.type for way in ways)
    counts = Counter(types)
    bits = sum(count * ggml.type_named(kind).bpw for kind, count in counts.items())
    return replace(
        ways[0],
        type=counts.most_common(1)[0][0],
        error=known.mixed([way.candidate for way in ways]),
        below=bits < floor * len(types),
        candidate="",
        experts=types,
    )


def _option(known: TensorSensitivity, options: Sequence[Option], name: str) -> Option:
    """Of a token's experts those are read to which it is routed."""
    seconds = np.array(known.routed) @ np.array([option.seconds for option in options])
    return Option(
        name,
        sum(option.size for option in options) // len(options),
        float(np.array(known.experts) @ np.array([option.loss for option in options])),
        tuple(seconds.tolist()),
        options[0].padded,
        hosted=True,
    )


def by_type(way: Way, size: int, routed: Sequence[float] = ()) -> tuple[tuple[str, int], ...]:
    """A mixture's bytes in each type, the most first.

    Args:
        size: bytes of all experts.
        routed: each one's share of rows: its bytes count that often, as tokens read them.
    """
    count = len(way.experts)
    bits = [ggml.type_named(kind).bpw for kind in way.experts]
    each = size * count / sum(bits)
    found = dict.fromkeys(way.experts, 0.0)
    for kind, bpw, share in zip(way.experts, bits, routed or [1 / count] * count, strict=True):
        found[kind] += each * bpw * share
    ordered = sorted(found.items(), key=lambda entry: -entry[1])
    return tuple((kind, round(bytes_)) for kind, bytes_ in ordered)
