"""The plan: for every tensor of a model, the type it gets and where it will live.

A plan is made once and applied anywhere: it holds exact GGUF names, no patterns, no paths and no
host names. Its JSON is sorted, so that two plans can be compared with `diff`, and it travels
inside the GGUF that was made from it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gemcut.artefact import read_text, write_text
from gemcut.errors import PlanError

VERSION = 1
METADATA_KEY = "gemcut.plan"  # of the GGUF that carries it


@dataclass(frozen=True)
class Entry:
    """What happens to one tensor."""

    type: str  # ggml's name, lower case
    device: str | None = None  # where it will live; None: decided when the model is loaded
    padded_to: int | None = None  # row length after zero padding
    split: bool = False  # a fused gate and up written as two tensors
    experts: tuple[str, ...] | None = None  # a type for every expert, in place of `type`
    wanted: str | None = None  # the type a stock mixture asked for, where the row refused it


@dataclass(frozen=True)
class Plan:
    """The types of all tensors, and what they were chosen for."""

    architecture: str
    weights: int
    size: int  # bytes of the tensors as they will be written
    request: Mapping[str, Any]  # what the user asked for
    solver: Mapping[str, Any]  # how the types were chosen
    tensors: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def bpw(self) -> float:
        """Bits per weight over all tensors."""
        return 8 * self.size / self.weights

    @property
    def fallbacks(self) -> dict[str, Entry]:
        """The tensors that got another type than was asked for."""
        return {name: entry for name, entry in self.tensors.items() if entry.wanted}

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data; fields of tensors that say nothing are left out."""
        document = {"version": VERSION} | asdict(self)
        document["tensors"] = {
            name: {key: value for key, value in asdict(entry).items() if value}
            for name, entry in self.tensors.items()
        }
        return document

    def to_json(self, indent: int | None = 2) -> str:
        """The plan as sorted JSON."""
        separators = (",", ":") if indent is None else None
        return json.dumps(self.to_dict(), sort_keys=True, indent=indent, separators=separators)

    @classmethod
    def from_json(cls, text: str, where: str) -> "Plan":
        """A plan from its JSON; `where` names the source in errors.

        Raises:
            PlanError: not a plan, or of another version.
        """
        try:
            document = json.loads(text)
            if document.pop("version") != VERSION:
                raise PlanError(f"{where}: a plan of another version; wanted {VERSION}")
            tensors = {name: _entry(raw) for name, raw in document.pop("tensors").items()}
            plan = cls(**document, tensors=tensors)
            if not (isinstance(plan.weights, int) and plan.weights > 0):
                raise TypeError(f"{plan.weights} weights")
            if not (isinstance(plan.size, int) and plan.size >= 0):
                raise TypeError(f"size is {plan.size!r}")
            if not isinstance(plan.request, dict):
                raise TypeError(f"request is {plan.request!r}")
            return plan
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise PlanError(f"{where}: not a plan: {error}") from error

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """Read a plan.json. Raises PlanError."""
        return cls.from_json(read_text(path, "a plan", PlanError), str(path))

    def write(self, path: Path) -> None:
        """Write a plan.json, complete or not at all. Raises OutputError."""
        write_text(path, self.to_json() + "\n")


def _entry(raw: Mapping[str, Any]) -> Entry:
    entry = Entry(**raw)
    if not isinstance(entry.type, str):
        raise TypeError(f"type is {entry.type!r}")
    return Entry(**{**raw, "experts": tuple(entry.experts)}) if entry.experts else entry
