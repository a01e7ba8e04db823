"""What a user asks of a plan: limits, a preference, and rules for single tensors."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any

from gemcut import ggml
from gemcut.errors import PlanError, UsageError
from gemcut.quantize.roles import PRIORS
from gemcut.roles import role_of

PREFERENCES = ("speed", "balance", "quality")
_PLACES = "cpu, gpu (any card), gpu0, gpu1, ..."


@dataclass(frozen=True)
class Rule:
    """What tensors of a name's pattern may be: of these types, or at this place, or both."""

    pattern: str  # as in a shell: blk.*.attn_*
    types: tuple[str, ...] = ()  # none: any
    device: str | None = None

    def __str__(self) -> str:
        """As it is written."""
        return f"{self.pattern}={','.join([*self.types, *([self.device] if self.device else [])])}"


@dataclass(frozen=True)
class Request:
    """What a plan is to be. What is None is not asked for."""

    size: int | None = None  # bytes of the whole file, at most
    bpw: float | None = None
    min_speed: float | None = None  # tokens per second of decoding
    max_kld: float | None = None
    prefer: str | None = (
        None  # see PREFERENCES; None: quality if a limit says how much, else balance
    )
    types: tuple[str, ...] | None = None  # the only ones to choose from
    all_types: bool = False  # no limits for what a tensor may become
    plain: bool = False  # no padding and no splitting: what llama-quantize can make, too
    per_expert: bool = False  # types of single experts where these help; runs with gemcut alone
    rules: tuple[Rule, ...] = ()
    floors: Mapping[str, str] = field(default_factory=dict)  # role -> the smallest type it may get

    def __post_init__(self) -> None:
        """Refuse what cannot be meant. Raises UsageError."""
        if self.size is not None and self.bpw is not None:
            raise UsageError("a size and bits per weight are two words for one thing: give one")
        for name in ("size", "bpw", "min_speed", "max_kld"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value > 0):
                raise UsageError(f"{name.replace('_', '-')} is {value}: wanted more than 0")
        if self.prefer is not None and self.prefer not in PREFERENCES:
            raise UsageError(f"prefer {self.prefer!r}: wanted {', '.join(PREFERENCES)}")
        if self.types is not None and (self.all_types or not self.types):
            raise UsageError("types: give a list of them, or all, not both")
        if self.per_expert and self.plain:
            raise UsageError(
                "per-expert goes without plain and without exports: llama-quantize has one type a "
                "tensor"
            )
        for kind in (*(self.types or ()), *self.floors.values()):
            ggml.type_named(kind)
        for role in self.floors:
            if not _of_role(role):
                raise UsageError(f"floor of {role!r}: no such role; roles are {', '.join(PRIORS)}")

    @property
    def preference(self) -> str:
        """What is preferred: within a stated size, speed or loss the best, else the balance."""
        if self.max_kld is not None:
            return self.prefer or "speed"
        bounded = (self.size, self.bpw, self.min_speed)
        return self.prefer or ("quality" if any(bounded) else "balance")

    def floor(self, name: str) -> ggml.Type | None:
        """The smallest type that a tensor may get, if that was asked for."""
        role = role_of(name).name
        kinds = [
            ggml.type_named(kind) for key, kind in self.floors.items() if role in _of_role(key)
        ]
        return max(kinds, key=lambda kind: kind.bpw, default=None)

    def to_dict(self) -> dict[str, Any]:
        """What was asked for, as plain data."""
        said = {key: value for key, value in asdict(self).items() if value}
        if self.rules:
            said["rules"] = [str(rule) for rule in self.rules]
        return said


def parse_rule(text: str) -> Rule:
    """A rule as it is written: PATTERN=VALUE[,VALUE], each a ggml type or a place.

    Raises:
        UsageError: it is not one.
        PlanError: an unknown type.
    """
    pattern, equals, values = text.rpartition("=")
    if not equals or not pattern or not values:
        raise UsageError(f"rule {text!r}: wanted PATTERN=TYPE or PATTERN=PLACE: blk.*.attn_*=q6_k")
    words = [word.strip().lower() for word in values.split(",")]
    places = [word for word in words if word == "cpu" or word.startswith("gpu")]
    if len(places) > 1 or not all(p in ("cpu", "gpu") or p[3:].isdecimal() for p in places):
        raise UsageError(f"rule {text!r}: wanted one place of {_PLACES}")
    types = tuple(ggml.type_named(word).name for word in words if word not in places)
    return Rule(pattern.strip(), types, places[0] if places else None)


def rules_of(
    rules: Collection[Rule],
    names: Collection[str],
    fixed: Collection[str] = (),
    wholes: Mapping[str, str] | None = None,
) -> dict[str, Rule]:
    """For every tensor that a rule is about, what all its rules leave: types and a place.

    Args:
        fixed: of the names those whose types cannot be chosen; types are for the others.
        wholes: of the names those of parts, with that of the tensor which holds them; a rule about
            it is one about them.

    Raises:
        PlanError: a rule is about no tensor, or rules leave nothing.
    """
    found: dict[str, Rule] = {}
    called = {name: {name, (wholes or {}).get(name, name)} for name in names}
    for rule in rules:
        matched = [n for n in names if any(fnmatchcase(c, rule.pattern) for c in called[n])]
        if not matched:
            raise PlanError(
                f"rule {rule}: no tensor has such a name; see `gemcut inspect` for the names"
            )
        if rule.types and all(name in fixed for name in matched):
            raise PlanError(f"rule {rule}: {matched[0]} and the like are never cut")
        for name in matched:
            found[name] = _both(found[name], rule, name) if name in found else rule
    return found


def _both(first: Rule, second: Rule, name: str) -> Rule:
    shared = tuple(kind for kind in first.types if kind in second.types)
    elsewhere = first.device and second.device and first.device != second.device
    if elsewhere or (first.types and second.types and not shared):
        raise PlanError(f"{name}: the rules {first} and {second} contradict each other")
    return Rule(name, shared or first.types or second.types, first.device or second.device)


def _of_role(name: str) -> frozenset[str]:
    """The roles of a word: itself, and "experts" stands for all kinds of them."""
    roles = {role for role in PRIORS if role == name or (name == "experts" and name in role)}
    return frozenset(roles)
