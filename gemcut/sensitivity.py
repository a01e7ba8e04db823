"""The sensitivity: what each tensor loses in each type, and what a loss costs the whole model.

Measured once, used for any budget. Every tensor has a local error for every candidate: the
relative squared error of a round trip, weighted by importance. Tensors of one role and depth form
a group, and a group's weight says how much KL divergence a unit of its relative error costs:

    predicted KL divergence = sum over tensors of weight(group) x error(tensor, candidate)

The file is sorted JSON with one tensor and one group per line, so that two can be compared with
`diff`; it holds no paths, but digests of what it was made from.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemcut.artefact import (
    Reader,
    amount,
    each,
    fields,
    number,
    optional_string,
    parse,
    read_text,
    sequence,
    string,
    write_text,
)
from gemcut.errors import PlanError, SensitivityError
from gemcut.tensor_sensitivity import (
    PARTS,
    LocalError,
    TensorSensitivity,
    read_tensor,
    tensor_to_dict,
)

VERSION = 1
SOURCES = ("prior", "probe")

Point = tuple[float, float, float]  # relative error, KL divergence and its standard error


@dataclass(frozen=True)
class GroupWeight:
    """KL divergence per unit of relative error, summed over the group's tensors."""

    weight: float
    se: float  # standard error of the weight
    source: str  # "prior": believed; "probe": measured on the model itself
    points: tuple[Point, ...] = ()  # what was measured


@dataclass(frozen=True)
class Sensitivity:
    """Errors of all tensors and weights of all groups, and what they were measured on."""

    architecture: str
    source: str  # digest of the model
    imatrix: str | None  # digest of the importance
    text: str | None  # digest of the text that the weights were measured on
    settings: Mapping[str, str | int | float]
    groups: Mapping[str, GroupWeight] = field(default_factory=dict, repr=False)
    tensors: Mapping[str, TensorSensitivity] = field(default_factory=dict, repr=False)

    def predict(self, types: Mapping[str, str | Sequence[str]]) -> tuple[float, float]:
        """Predicted KL divergence of a file with these types, and its standard error.

        The standard error holds what is not known about the parameters: one weight is wrong for
        all tensors of its group alike, priors are wrong together, and the errors of tensors are so
        independently. It says nothing about how well a sum describes the model.

        Args:
            types: tensor to candidate, or to one for each of its experts; of a fused tensor, it or
                both its parts. Tensors that were not measured, since they are never cut, cost
                nothing.

        Raises:
            PlanError: a tensor is missing, or has no such candidate.
        """
        errors: dict[str, list[LocalError]] = {group: [] for group in self.groups}
        for name in self._chosen(types):
            errors[self.tensors[name].group].append(self._error(name, types[name]))
        return self.total(errors)

    def total(self, errors: Mapping[str, Collection[LocalError]]) -> tuple[float, float]:
        """KL divergence, and its standard error, of errors in these groups; see `predict`."""
        total = variance = believed = 0.0
        for group, found in errors.items():
            weight, error = self.groups[group], sum(each.mean for each in found)
            total += weight.weight * error
            variance += weight.weight**2 * sum(each.se**2 for each in found)
            if weight.source == "prior":
                believed += weight.se * error
            else:
                variance += (weight.se * error) ** 2
        return total, math.sqrt(variance + believed**2)

    def _chosen(self, types: Collection[str]) -> Iterable[str]:
        """The measured tensors that a file has: a fused one, or both its parts."""
        for name in self.tensors:
            whole, _, part = name.partition("#")
            apart = any(f"{whole}#{each}" in types for each in PARTS)
            if apart and whole in types:
                raise PlanError(f"{whole}: given both as one tensor and in parts")
            if bool(part) != apart:
                continue
            if name not in types:
                raise PlanError(f"{name}: no type is given for it, and it was measured")
            yield name

    def _error(self, name: str, wanted: str | Sequence[str]) -> LocalError:
        known = self.tensors[name].errors
        if not isinstance(wanted, str):
            return self.tensors[name].mixed(wanted)
        if wanted not in known:
            raise PlanError(f"{name}: {wanted} was not measured, but {', '.join(sorted(known))}")
        return known[wanted]

    def to_json(self) -> str:
        """Sorted JSON, one group and one tensor per line."""
        head = {
            "architecture": self.architecture,
            "imatrix": self.imatrix,
            "settings": dict(self.settings),
            "source": self.source,
            "text": self.text,
            "version": VERSION,
        }
        groups = {name: vars(group) for name, group in self.groups.items()}
        tensors = {name: tensor_to_dict(tensor) for name, tensor in self.tensors.items()}
        lines = [f"{json.dumps(key)}: {_line(value)}," for key, value in head.items()]
        return "\n".join(
            ["{", *lines, '"groups": {', *_lines(groups), "},", '"tensors": {', *_lines(tensors)]
            + ["}", "}", ""]
        )

    @classmethod
    def from_json(cls, text: str, where: str) -> "Sensitivity":
        """A sensitivity from its JSON; `where` names the source in errors.

        Raises:
            SensitivityError: not a sensitivity, damaged, or of another version.
        """
        try:
            document = parse(text)
            if not isinstance(document, dict) or "version" not in document:
                raise TypeError("it has no version")
            if (version := document.pop("version")) != VERSION or type(version) is not int:
                raise SensitivityError(
                    f"{where}: a sensitivity of another version; wanted {VERSION}: measure again"
                )
            return _sensitivity(document)
        except (ValueError, TypeError, RecursionError, PlanError) as error:
            raise SensitivityError(f"{where}: not a sensitivity: {error}") from error

    @classmethod
    def read(cls, path: Path) -> "Sensitivity":
        """Read a sensitivity.json. Raises SensitivityError."""
        return cls.from_json(read_text(path, "a sensitivity", SensitivityError), str(path))

    def write(self, path: Path) -> None:
        """Write a sensitivity.json, complete or not at all. Raises OutputError."""
        write_text(path, self.to_json())


def _lines(entries: Mapping[str, Any]) -> list[str]:
    lines = [f"{json.dumps(name)}: {_line(entries[name])}," for name in sorted(entries)]
    return [*lines[:-1], *(line.removesuffix(",") for line in lines[-1:])]


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _sensitivity(document: Mapping[str, Any]) -> Sensitivity:
    read: dict[str, Reader[Any]] = {
        "architecture": string,
        "source": string,
        "imatrix": optional_string,
        "text": optional_string,
        "settings": _settings,
        "groups": lambda raw, what: each(read_group, raw, what),
        "tensors": lambda raw, what: each(read_tensor, raw, what),
    }
    found = Sensitivity(**fields(document, "the file", read))
    for name, tensor in found.tensors.items():
        if tensor.group not in found.groups:
            raise ValueError(f"{name} is of the group {tensor.group!r}, which has no weight")
        if name.partition("#")[0] not in found.tensors:
            raise ValueError(f"{name} is a part of what is not there")
    return found


def read_group(raw: Any, what: str) -> GroupWeight:
    """A group's weight out of plain data. Raises TypeError or ValueError: it is none."""
    read = {"weight": amount, "se": amount, "source": _kind, "points": _points}
    return GroupWeight(**fields(raw, what, read))


def _points(raw: Any, what: str) -> tuple[Point, ...]:
    # A divergence less its noise floor may be below zero.
    return tuple(
        (amount(error, what), number(divergence, what), amount(se, what))
        for error, divergence, se in (sequence(point, what, 3) for point in sequence(raw, what))
    )


def _kind(raw: Any, what: str) -> str:
    if raw not in SOURCES:
        raise ValueError(f"{what} is {raw!r:.40}, wanted {' or '.join(SOURCES)}")
    return str(raw)


def _settings(raw: Any, what: str) -> dict[str, str | int | float]:
    found = each(lambda value, name: value, raw, what)
    for name, value in found.items():
        if not isinstance(value, str):
            number(value, name)
    return found
