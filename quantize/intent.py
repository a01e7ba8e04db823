"""What a user asks for, as words: options of the command line, and the same names in a TOML file.

    vram = ["12G", "24G"]
    context = "32k"
    prefer = "quality"
    rules = ["blk.*.attn_*=q6_k"]

    [floors]
    experts = "q4_k"

What is not said is None: it is up to the machine, or to the planner.
"""

import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemcut.artefact import read_text
from gemcut.engine import ContextOptions
from gemcut.errors import UsageError
from gemcut.kv_cache import CACHE_TYPES
from gemcut.quantize.request import Request, parse_rule
from gemcut.sizes import parse_context, parse_size

CONTEXT = 32768  # tokens, if nothing is said and the model can hold as many
_MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ
_MOST_TOKENS = (1 << 31) - 1
# What is no longer meant when a word is said anew.
_REPLACED = {"size": {"bpw"}, "bpw": {"size"}, "kv": {"cache-type-k", "cache-type-v"}}

Said = Mapping[str, Any]  # by the names of options, without their dashes


@dataclass(frozen=True)
class Intent:
    """What was said, understood. Bytes and tokens."""

    vram: tuple[int, ...] | None = None  # of every card, in all
    ram: int | None = None  # 0: nothing on the host that need not be
    machine: str | None = None  # a profile's file or name
    context: int | None = None  # over all sequences
    type_k: str = "f16"
    type_v: str = "f16"
    parallel: int = 1
    ubatch: int = 512
    request: Request = field(default_factory=Request)

    @property
    def of_a_machine(self) -> bool:
        """Whether anything was said about where and how the file will run."""
        return any(each is not None for each in (self.vram, self.ram, self.machine, self.context))

    def options(self, trained: int | None) -> ContextOptions:
        """The context that the plan is for.

        Args:
            trained: tokens that the model was made for, if that is known.

        Raises:
            UsageError: fewer tokens than sequences.
        """
        tokens = self.context or min(CONTEXT, trained or CONTEXT)
        if tokens < self.parallel:
            raise UsageError(f"a context of {tokens} tokens for {self.parallel} sequences")
        return ContextOptions(
            n_ctx=tokens,
            n_ubatch=self.ubatch,
            n_seq=self.parallel,
            type_k=self.type_k,
            type_v=self.type_v,
            n_outputs=self.parallel,
        )


def understand(said: Said) -> Intent:
    """The intent that words mean; None counts as not said.

    Raises:
        UsageError: an unknown name, or a value that is none for it.
        PlanError: an unknown type.
    """
    if unknown := sorted(said.keys() - _READERS.keys()):
        raise UsageError(f"{unknown[0]!r:.40} cannot be asked for; known are {', '.join(_READERS)}")
    read = {name: _READERS[name](raw, name) for name, raw in said.items() if raw is not None}
    both = read.pop("kv", "f16")
    types = read.pop("types", None)
    asked = Request(
        **{key: read.pop(name) for name, key in _REQUESTED.items() if name in read},
        types=types if isinstance(types, tuple) else None,
        all_types=types == "all",
    )
    return Intent(
        type_k=read.pop("cache-type-k", both),
        type_v=read.pop("cache-type-v", both),
        request=asked,
        **read,
    )


def read_intent(path: Path) -> dict[str, Any]:
    """What a TOML file says.

    Raises:
        UsageError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(read_text(path, "TOML", UsageError))
    except (ValueError, RecursionError) as error:  # ValueError: a number of too many digits, too
        raise UsageError(f"{path}: not TOML: {error}") from error


def overriding(first: Said, then: Said) -> dict[str, Any]:
    """What was said first, but for what was said anew."""
    anew = {name: value for name, value in then.items() if value is not None}
    gone = {name for word in anew for name in _REPLACED.get(word, ())}
    return {name: value for name, value in first.items() if name not in gone} | anew


def _size(raw: Any, name: str) -> int:
    text = str(raw) if type(raw) is int and raw >= 0 else raw
    return int(_said(parse_size, text, name))


def _positive(raw: Any, name: str) -> int:
    if not (found := _size(raw, name)):
        raise UsageError(f"{name} is 0: wanted more" + _without(name))
    return found


def _without(name: str) -> str:
    return "; a machine without a card is, say, --machine ddr4-3200" if name == "vram" else ""


def _sizes(raw: Any, name: str) -> tuple[int, ...]:
    found = raw.split(",") if isinstance(raw, str) else [raw] if isinstance(raw, int) else raw
    found = _list(found, name)
    if not found:
        raise UsageError(f"{name} is {raw}: wanted a size for every card" + _without(name))
    return tuple(_positive(each, name) for each in found)


def _tokens(raw: Any, name: str) -> int:
    found = raw if type(raw) is int else int(_said(parse_context, raw, name))
    return _within(found, name, _MOST_TOKENS)


def _sequences(raw: Any, name: str) -> int:
    return _within(raw, name, _MOST_SEQUENCES)


def _within(raw: Any, name: str, most: int) -> int:
    if type(raw) is not int or not 0 < raw <= most:
        raise UsageError(f"{name} is {raw!r:.40}: wanted a whole number from 1 to {most}")
    return raw


def _number(raw: Any, name: str) -> float:
    if type(raw) in (int, float):
        with suppress(OverflowError):  # a file's whole number may have any number of digits
            return float(raw)
    raise UsageError(f"{name} is {raw!r:.40}: wanted a number")


def _word(raw: Any, name: str) -> str:
    if not isinstance(raw, str) or not raw:
        raise UsageError(f"{name} is {raw!r:.40}: wanted a word")
    return raw


def _cache_type(raw: Any, name: str) -> str:
    if (found := _word(raw, name).lower()) not in CACHE_TYPES:
        raise UsageError(f"{name} is {found!r:.40}: llama.cpp keeps {', '.join(CACHE_TYPES)}")
    return found


def _types(raw: Any, name: str) -> tuple[str, ...] | str:
    words = raw.split(",") if isinstance(raw, str) else _list(raw, name)
    found = tuple(_word(word, name).strip().lower() for word in words)
    return found[0] if found in (("all",), ("default",)) else found


def _flag(raw: Any, name: str) -> bool:
    if not isinstance(raw, bool):
        raise UsageError(f"{name} is {raw!r:.40}: wanted true or false")
    return raw


def _rules(raw: Any, name: str) -> tuple[Any, ...]:
    return tuple(parse_rule(_word(each, name)) for each in _list(raw, name))


def _floors(raw: Any, name: str) -> dict[str, str]:
    if not isinstance(raw, Mapping):
        raise UsageError(f"{name} is {raw!r:.40}: wanted a role and a type each, experts=q4_k")
    return {role: _word(kind, f"{name}: {role}").lower() for role, kind in raw.items()}


def _list(raw: Any, name: str) -> list[Any]:
    if not isinstance(raw, (list, tuple)):
        raise UsageError(f"{name} is {raw!r:.40}: wanted a list")
    return list(raw)


def _said(parse: Callable[[str], int], raw: Any, name: str) -> int:
    try:
        return parse(_word(raw, name))
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


_READERS: Mapping[str, Callable[[Any, str], Any]] = {
    "vram": _sizes,
    "ram": _size,
    "machine": _word,
    "context": _tokens,
    "kv": _cache_type,
    "cache-type-k": _cache_type,
    "cache-type-v": _cache_type,
    "parallel": _sequences,
    "ubatch": _tokens,
    "size": _positive,
    "bpw": _number,
    "min-speed": _number,
    "max-kld": _number,
    "prefer": _word,
    "types": _types,
    "rules": _rules,
    "floors": _floors,
    "per-expert": _flag,
    "plain": _flag,
}
_REQUESTED = {
    "size": "size",
    "bpw": "bpw",
    "min-speed": "min_speed",
    "max-kld": "max_kld",
    "prefer": "prefer",
    "rules": "rules",
    "floors": "floors",
    "per-expert": "per_expert",
    "plain": "plain",
}
