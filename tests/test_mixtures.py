"""Types per expert: of the same size nothing loses less than the mixtures that are found."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut import ggml
from gemcut.quantize.choices import Way
from gemcut.quantize.mixtures import by_type, hull, mixed
from gemcut.runtime.placement.problem import Option
from gemcut.tensor_sensitivity import LocalError, TensorSensitivity

KINDS = ["q3_k", "q4_k", "q5_k", "q6_k", "q8_0"]


def number(least: float = 1e-6):
    return st.floats(least, 1, allow_nan=False)


STACKS = st.integers(1, 4).flatmap(
    lambda experts: st.integers(1, 4).flatmap(
        lambda types: st.tuples(
            st.lists(number(), min_size=experts, max_size=experts).map(
                lambda raw: np.array(raw) / sum(raw)
            ),
            st.lists(number(), min_size=types, max_size=types).map(np.array),
            st.lists(st.integers(1, 50), min_size=types, max_size=types).map(
                lambda raw: np.array(raw, float)
            ),
        )
    )
)


@given(STACKS, st.integers(3, 30))
def test_nothing_of_the_same_size_loses_less_than_a_mixture(stack, points):
    shares, losses, sizes = stack
    experts = len(shares)
    every = np.array(list(itertools.product(range(len(sizes)), repeat=experts)))
    all_sizes, all_losses = sizes[every].sum(axis=1), losses[every] @ shares

    found = hull(shares, losses, sizes, points)

    taken = np.array([sizes[each].sum() for each in found])
    lost = np.array([losses[each] @ shares for each in found])
    assert len(found) <= points + 1
    assert (np.diff(taken) > 0).all() and (np.diff(lost) < 1e-12).all()
    assert taken[0] == all_sizes.min() and lost[-1] == pytest.approx(all_losses.min())
    for size, loss in zip(taken, lost, strict=True):
        assert loss <= all_losses[all_sizes <= size].min() + 1e-12


def test_points_are_spread_evenly_over_the_loss():
    shares = np.full(128, 1 / 128)
    losses = 4.0 ** -np.arange(8)

    left = [losses[each] @ shares for each in hull(shares, losses, np.arange(1.0, 9.0))]

    assert len(left) == 24
    steps = -np.diff(np.log(left[:-1]))
    assert steps.max() < 2 * steps.min()


def stack(shares, routed) -> TensorSensitivity:
    errors = {kind: LocalError(0.1 / 4**at, 0.01 / 4**at) for at, kind in enumerate(KINDS)}
    return TensorSensitivity("group", errors, experts=tuple(shares), routed=tuple(routed))


def options(experts: int) -> list[tuple[Way, Option]]:
    found = []
    for at, kind in enumerate(KINDS):
        size = experts * 100 * ggml.type_named(kind).row_bytes(256)
        way = Way("t", kind, key="t", error=LocalError(0.1 / 4**at), candidate=kind)
        found.append((way, Option(kind, size, 2 * 0.1 / 4**at, (size * 1e-6, size * 1e-7))))
    return found


def test_a_mixture_costs_what_its_experts_do():
    known = stack([0.7, 0.2, 0.05, 0.05], [0.4, 0.3, 0.2, 0.1])
    stock = {way.type: option for way, option in options(4)}

    found = list(mixed(known, options(4), 4.25))

    assert len(found) > 5 and len({option.name for _, option in found}) == len(found)
    for way, option in found:
        each = [stock[kind] for kind in way.experts]
        assert option.hosted and len(set(way.experts)) > 1
        assert option.size == sum(one.size // 4 for one in each)
        assert option.loss == pytest.approx(known.experts @ np.array([one.loss for one in each]))
        assert option.loss == pytest.approx(2 * way.error.mean)
        for place in (0, 1):
            read = [one.seconds[place] for one in each]
            assert option.seconds[place] == pytest.approx(known.routed @ np.array(read))
        assert way.type == Counter(way.experts).most_common(1)[0][0]
        assert way.below == (np.mean([ggml.type_named(k).bpw for k in way.experts]) < 4.25)
        bits = [ggml.type_named(kind).bpw for kind in way.experts]
        assert (np.diff(bits) <= 0).all(), "an expert with less of the error has more bits"


def test_bytes_by_type():
    way = Way("t", "q4_k", experts=("q8_0", "q4_k", "q4_k", "q4_k"))
    large, small = (100 * ggml.type_named(kind).row_bytes(256) for kind in ("q8_0", "q4_k"))
    size = large + 3 * small

    assert dict(by_type(way, size)) == {"q8_0": large, "q4_k": 3 * small}
    read = dict(by_type(way, size, [0.7, 0.1, 0.1, 0.1]))
    assert read == {
        "q8_0": pytest.approx(4 * 0.7 * large, abs=1),
        "q4_k": pytest.approx(4 * 0.3 * small, abs=1),
    }


def test_nothing_to_mix():
    even = stack([0.5, 0.5], [0.5, 0.5])

    assert not list(mixed(even, options(2)[:1], 4.25)) and not list(mixed(even, [], 4.25))
    harmless = [(way, replace(option, loss=0.0)) for way, option in options(2)]
    assert not list(mixed(even, harmless, 4.25))
