"""What one tensor loses in each way to write it; of a stack of experts, what each of them adds.

A local error is the relative squared error of a round trip, weighted by importance. That of a stack
is a sum over its experts, so it is known, too, where experts have types of their own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from gemcut import ggml
from gemcut.artefact import Reader, amount, each, fields, sequence, share, string
from gemcut.errors import PlanError

PARTS = ("gate", "up")  # of a tensor that holds both, when they are written apart


@dataclass(frozen=True)
class Candidate:
    """A way to write a tensor: a ggml type, its rows zero-padded or as they are."""

    type: ggml.Type
    padded_to: int | None = None  # length of a row after zero-padding

    def __str__(self) -> str:
        """The name in artefacts: "q4_k", or "q4_k@768" for rows padded to 768."""
        return self.type.name if self.padded_to is None else f"{self.type.name}@{self.padded_to}"


@cache
def candidate(name: str) -> Candidate:
    """The candidate of a name. Raises PlanError: ggml has no such type, or no such blocks."""
    kind, padded, width = name.partition("@")
    found = ggml.types().get(kind)
    if found is None:
        raise PlanError(f"unknown candidate {name!r}; ggml has {', '.join(sorted(ggml.types()))}")
    if not padded:
        return Candidate(found)
    digits = width.isascii() and width.isdecimal() and len(width) < 10 and width[0] != "0"
    if not digits or not found.fits(int(width)):
        raise PlanError(f"unknown candidate {name!r}: rows are padded to whole blocks, as q4_k@768")
    return Candidate(found, int(width))


@dataclass(frozen=True)
class LocalError:
    """A relative squared error, sum of importance (w - w')^2 over that of w^2, as estimated."""

    mean: float
    se: float = 0.0  # standard error of the mean, of sampling rows


@dataclass(frozen=True)
class TensorSensitivity:
    """One tensor's group, and its error in every candidate.

    The parts of a fused tensor ("NAME#gate" and "NAME#up") have their errors relative to the whole
    tensor, so that those of both add up to that of the whole.

    experts: of a stack, each expert's share of the error, whatever the candidate: experts differ in
    how much they are used and in how large they are, hardly in what a type makes of them. routed:
    each one's share of the rows that the router sent; what is read, while errors count by mass.
    """

    group: str
    errors: Mapping[str, LocalError]
    lattice: float = 0.0  # share of its groups of 32 that lie on a Q4_0 lattice
    experts: tuple[float, ...] = ()
    routed: tuple[float, ...] = ()

    def mixed(self, names: Sequence[str]) -> LocalError:
        """The error with a candidate for every expert.

        Raises:
            PlanError: not one for each, or a candidate that was not measured.
        """
        if len(names) != len(self.experts):
            raise PlanError(f"candidates for {len(names)} experts; {len(self.experts)} are known")
        parts = dict.fromkeys(names, 0.0)
        for name, part in zip(names, self.experts, strict=True):
            parts[name] += part
        if unknown := parts.keys() - self.errors.keys():
            known = ", ".join(sorted(self.errors))
            raise PlanError(f"{min(unknown)} was not measured, but {known}")
        mean = math.fsum(part * self.errors[name].mean for name, part in parts.items())
        return LocalError(mean, math.hypot(*(p * self.errors[n].se for n, p in parts.items())))


def tensor_to_dict(tensor: TensorSensitivity) -> dict[str, Any]:
    """A tensor as plain data, as it stands in the file; what says nothing is left out."""
    errors = {name: [error.mean, error.se] for name, error in tensor.errors.items()}
    more = {name: getattr(tensor, name) for name in _MORE}
    said = {name: value for name, value in more.items() if value}
    return {"group": tensor.group, "errors": errors} | said


def read_tensor(raw: Any, what: str) -> TensorSensitivity:
    """A tensor out of plain data. Raises TypeError, ValueError or PlanError: it is none."""
    read: dict[str, Reader[Any]] = {
        "group": string,
        "errors": lambda errors, where: each(_error, errors, where),
    }
    if isinstance(raw, dict):
        read |= {name: reader for name, reader in _MORE.items() if name in raw}
    tensor = TensorSensitivity(**fields(raw, what, read))
    for name in tensor.errors:
        candidate(name)
    if len(tensor.experts) != len(tensor.routed):
        counts = f"{len(tensor.experts)} and {len(tensor.routed)}"
        raise ValueError(f"{what} is known of {counts} experts, wanted as many")
    return tensor


def _error(raw: Any, what: str) -> LocalError:
    mean, se = sequence(raw, what, 2)
    return LocalError(amount(mean, what), amount(se, what))


def _shares(raw: Any, what: str) -> tuple[float, ...]:
    return tuple(share(one, what) for one in sequence(raw, what))


_MORE: Mapping[str, Reader[Any]] = {  # fields that not every tensor has
    "lattice": share,
    "experts": _shares,
    "routed": _shares,
}
