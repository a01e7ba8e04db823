"""How far two files send the same tokens to the same experts."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gemcut.errors import EngineError
from gemcut.eval.routing.capture import Choices, Routing
from gemcut.eval.statistics.intervals import Clusters, Estimate, mean

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LayerAgreement:
    """One block's routing against the reference's, over tokens.

    same: share of tokens whose set of chosen experts is the same.
    overlap: mean share of the chosen experts that are the reference's, too.
    moved: mean gate mass given to other experts: half the L1 distance of normalised gates.
    """

    block: int
    same: Estimate
    overlap: Estimate
    moved: Estimate


@dataclass(frozen=True)
class Agreement:
    """All mixture blocks, and the mean over them.

    What chance would give is an overlap of n_used / n_experts.
    """

    n_tokens: int
    n_used: int  # experts a token; the most of all blocks
    n_experts: int  # the most of all blocks
    layers: tuple[LayerAgreement, ...]
    same: Estimate
    overlap: Estimate
    moved: Estimate


def agreement(reference: Routing, other: Routing, owners: Clusters) -> Agreement:
    """How far another file's routing of the same tokens is the reference's, with 95 % intervals.

    Args:
        owners: the cluster of every token [n_tokens].

    Raises:
        EngineError: they have no mixture blocks, other ones, or other numbers of experts there:
            experts that were taken out leave nothing to compare by number.
        UsageError: fewer than two clusters.
    """
    check_alike(reference, other)
    compared = {block: compare(reference[block], other[block]) for block in reference}
    layers = (LayerAgreement(b, *_estimates(values, owners)) for b, values in compared.items())
    return Agreement(
        len(owners),
        max(choices.ids.shape[1] for choices in reference.values()),
        max(choices.n_experts for choices in reference.values()),
        tuple(layers),
        *_estimates(np.mean(list(compared.values()), axis=0), owners),
    )


def check_alike(reference: Routing, other: Routing) -> None:
    """Raise EngineError if the experts of two files are not each other's counterparts."""
    if not reference or not other:
        raise EngineError(f"the {'file' if reference else 'reference'} has no experts")
    if different := sorted(reference.keys() ^ other.keys()):
        holder = "the reference" if different[0] in reference else "the file"
        raise EngineError(f"only {holder} has experts in block {different[0]}")
    for block, choices in reference.items():
        if (found := other[block].n_experts) != choices.n_experts:
            raise EngineError(
                f"block {block} has {found} experts, the reference's {choices.n_experts}: "
                "which are the same is not known"
            )


def compare(one: Choices, other: Choices) -> _Floats:
    """Of each token: whether the sets are the same, their overlap, the gate mass moved.

    The overlap is the number of common experts over the larger set's: both are symmetric, and an
    overlap of 1 is the same set. Gates are taken as shares of a token's gates.

    Returns:
        [3, n_tokens], all from 0 to 1.
    """
    shares = _dense(one, _shares(one)), _dense(other, _shares(other))
    chosen = [_dense(each, np.ones_like(each.gates)) > 0 for each in (one, other)]
    common = (chosen[0] & chosen[1]).sum(axis=1)
    larger = np.maximum(chosen[0].sum(axis=1), chosen[1].sum(axis=1))
    overlap = common / np.maximum(larger, 1)
    moved = np.abs(shares[0] - shares[1]).sum(axis=1) / 2
    return np.stack([(common == larger).astype(np.float64), overlap, np.minimum(moved, 1)])


def _shares(choices: Choices) -> _Floats:
    gates: _Floats = choices.gates.astype(np.float64)
    gates /= np.maximum(gates.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return gates


def _dense(choices: Choices, values: NDArray[np.floating]) -> _Floats:
    """Values [n_tokens, n_used] at their experts' places: [n_tokens, n_experts]."""
    n_tokens, n_experts = len(choices.ids), choices.n_experts
    places = np.arange(n_tokens)[:, None] * n_experts + choices.ids
    flat = np.bincount(places.ravel(), values.ravel(), n_tokens * n_experts)
    return flat.astype(np.float64).reshape(n_tokens, n_experts)


def _estimates(values: _Floats, owners: Clusters) -> list[Estimate]:
    return [_share(mean(row, owners)) for row in values]


def _share(estimate: Estimate) -> Estimate:
    """An interval that ends where shares do."""
    return replace(estimate, low=max(0.0, estimate.low), high=min(1.0, estimate.high))
