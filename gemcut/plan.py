"""The plan: for every tensor of a model, the type it gets and where it will live.

A plan is made once and applied anywhere: it holds exact GGUF names, no patterns, no paths and no
host names. Its JSON is sorted, one tensor a line, so that two plans can be compared with `diff`,
and it travels inside the GGUF that was made from it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gemcut.artefact import (
    Reader,
    amount,
    each,
    number,
    parse,
    read_text,
    sequence,
    string,
    write_text,
)
from gemcut.errors import PlanError

VERSION = 2
METADATA_KEY = "gemcut.plan"  # of the GGUF that carries it
_PLACE = re.compile(r"cpu|gpu(0|[1-9]\d?)")  # as a profile names them


@dataclass(frozen=True)
class Entry:
    """What happens to one tensor of the file that is written."""

    type: str  # ggml's name, lower case
    device: str | None = None  # where it will live; None: decided when the model is loaded
    padded_to: int | None = None  # units of its feed-forward after zero padding
    split: bool = False  # it is the gate or the up of a tensor that is fused in the source
    experts: tuple[str, ...] | None = None  # a type for every expert, in place of `type`
    wanted: str | None = None  # the type a stock mixture asked for, where the row refused it
    error: float | None = None  # relative squared error in this type, as it was measured


@dataclass(frozen=True)
class Measured:
    """What a finished file was found to lose, beside what had been predicted of it."""

    kld: float
    se: float
    predicted: float | None  # None: nothing was
    text: str  # digest of the text
    chunks: int
    reference: str  # type of the file that it was held against


@dataclass(frozen=True)
class Plan:
    """The types and places of all tensors, and what they were chosen for."""

    architecture: str
    weights: int  # of the source: padding is not counted
    size: int  # bytes of the tensors as they will be written
    request: Mapping[str, Any]  # what the user asked for
    solver: Mapping[str, Any]  # how the types were chosen, and how far from the best they may be
    tensors: Mapping[str, Entry] = field(default_factory=dict, repr=False)
    sources: Mapping[str, str | None] = field(default_factory=dict)  # digests of what it rests on
    context: Mapping[str, Any] = field(default_factory=dict)  # n_ctx and the like it was made for
    machine: Mapping[str, Any] = field(default_factory=dict, repr=False)  # a profile, as data
    ledger: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # place -> what -> bytes
    predicted: Mapping[str, Any] = field(default_factory=dict)
    measured: tuple[Measured, ...] = field(default_factory=tuple)

    @property
    def bpw(self) -> float:
        """Bits per weight over all tensors."""
        return 8 * self.size / self.weights

    @property
    def fallbacks(self) -> dict[str, Entry]:
        """The tensors that got another type than was asked for."""
        return {name: entry for name, entry in self.tensors.items() if entry.wanted}

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data; fields that say nothing are left out."""
        document: dict[str, Any] = {"version": VERSION}
        for each_ in fields(self):
            value = getattr(self, each_.name)
            if value or each_.default_factory is MISSING:
                document[each_.name] = value
        document["tensors"] = {n: _said(asdict(entry)) for n, entry in self.tensors.items()}
        if self.measured:
            document["measured"] = [asdict(one) for one in self.measured]
        return document

    def to_json(self, indent: int | None = 2) -> str:
        """The plan as sorted JSON: one tensor a line, or (indent None) as short as it can be."""
        document = self.to_dict()
        if indent is None:
            return json.dumps(document, sort_keys=True, separators=(",", ":"))
        tensors = document.pop("tensors")
        head = json.dumps(document, sort_keys=True, indent=indent)
        lines = ",\n".join(
            f"{' ' * 2 * indent}{json.dumps(name)}: {json.dumps(tensors[name], sort_keys=True)}"
            for name in sorted(tensors)
        )
        return f'{head[:-2]},\n{" " * indent}"tensors": {{\n{lines}\n{" " * indent}}}\n}}'

    @classmethod
    def from_json(cls, text: str, where: str) -> "Plan":
        """A plan from its JSON; `where` names the source in errors.

        Raises:
            PlanError: not a plan, or of another version.
        """
        try:
            document = parse(text)
            if not isinstance(document, dict) or "version" not in document:
                raise TypeError("it has no version")
            if document.pop("version") != VERSION:
                raise PlanError(f"{where}: a plan of another version; wanted {VERSION}: plan again")
            return _plan(document)
        except (ValueError, TypeError, RecursionError) as error:
            raise PlanError(f"{where}: not a plan: {error}") from error

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """Read a plan.json. Raises PlanError."""
        return cls.from_json(read_text(path, "a plan", PlanError), str(path))

    def write(self, path: Path) -> None:
        """Write a plan.json, complete or not at all. Raises OutputError."""
        write_text(path, self.to_json() + "\n")

    def holding(self, measured: Measured) -> "Plan":
        """The plan with one more measurement of its file."""
        return replace(self, measured=(*self.measured, measured))


def _said(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if value is not None and value is not False}


def _plan(document: dict[str, Any]) -> Plan:
    readers: dict[str, Reader[Any]] = {
        "architecture": string,
        "weights": _count,
        "size": _count,
        "request": _object,
        "solver": _object,
        "tensors": lambda raw, what: each(_entry, raw, what),
        "sources": _object,
        "context": _object,
        "machine": _object,
        "ledger": lambda raw, what: each(_bytes, raw, what),
        "predicted": _predicted,
        "measured": lambda raw, what: tuple(_measured(one, what) for one in sequence(raw, what)),
    }
    if unknown := document.keys() - readers.keys():
        raise TypeError(f"{min(unknown)!r:.40} is no field of a plan")
    plan = Plan(**{name: readers[name](raw, name) for name, raw in document.items()})
    if not plan.weights:
        raise ValueError("it has no weights")
    return plan


def _measured(raw: Any, what: str) -> Measured:
    numbers: dict[str, Reader[Any]] = {"kld": number, "se": amount, "predicted": _prediction}
    readers = numbers | {"chunks": _count}
    names = [one.name for one in fields(Measured)]
    if not isinstance(raw, dict) or raw.keys() != set(names):
        raise TypeError(f"{what} is {raw!r:.40}, wanted {', '.join(names)}")
    return Measured(**{name: readers.get(name, string)(raw[name], what) for name in names})


def _predicted(raw: Any, what: str) -> dict[str, Any]:
    found = dict(_object(raw, what))
    by = {"kld_by": string(found.pop("kld_by"), what)} if "kld_by" in found else {}
    return each(_prediction, found, what) | by


def _prediction(raw: Any, what: str) -> float | None:
    return None if raw is None else number(raw, what)


def _object(raw: Any, what: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise TypeError(f"{what} is {raw!r:.40}, wanted an object")
    return raw


def _bytes(raw: Any, what: str) -> dict[str, int]:
    return each(_whole, raw, what)


def _whole(raw: Any, what: str) -> int:
    if type(raw) is not int:
        raise TypeError(f"{what} is {raw!r:.40}, wanted a whole number")
    return raw


def _count(raw: Any, what: str) -> int:
    if (found := _whole(raw, what)) < 0:
        raise ValueError(f"{what} is {found}, wanted 0 or more")
    return found


def _true(raw: Any, what: str) -> bool:
    if raw is not True:
        raise TypeError(f"{what} is {raw!r:.40}, wanted true, or nothing")
    return True


def _place(raw: Any, what: str) -> str:
    if not _PLACE.fullmatch(string(raw, what)):
        raise ValueError(f"{what} is {raw!r:.40}, wanted cpu, gpu0, gpu1, ...")
    return str(raw)


_ENTRY: Mapping[str, Reader[Any]] = {
    "type": string,
    "device": _place,
    "padded_to": _count,
    "split": _true,
    "experts": lambda raw, what: tuple(string(one, what) for one in sequence(raw, what)),
    "wanted": string,
    "error": amount,
}


def _entry(raw: Any, what: str) -> Entry:
    if not isinstance(raw, dict) or "type" not in raw:
        raise TypeError(f"{what} is {raw!r:.40}, wanted an object with a type")
    if unknown := raw.keys() - _ENTRY.keys():
        raise TypeError(f"{what}: {min(unknown)!r:.40} is no field of a tensor")
    return Entry(**{name: _ENTRY[name](raw[name], f"{what}: {name}") for name in raw})
