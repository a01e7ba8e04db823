"""What a family of architectures is: a table of tensors, a table of metadata, a vocabulary.

A family declares; the engine (`convert.engine`) does. One file in `convert/families/` holds one
family, and its name is in `families.__init__`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemcut.convert.source import Source
from gemcut.convert.transforms import Transform
from gemcut.errors import CheckpointError
from gemcut.gguf_file import Value


class Config(dict[str, Any]):
    """A model's config.json: a missing field is a clear error."""

    def __missing__(self, field: str) -> Any:
        raise CheckpointError(f"config.json: no field {field!r}, which {self.who} needs")

    @property
    def who(self) -> str:
        """The architecture's name, for messages."""
        return str(self.get("model_type", "this model"))

    def positive(self, *fields: str, default: int | None = None) -> int:
        """A positive whole number, in the first of these fields that is there."""
        field = next((name for name in fields if self.get(name) is not None), fields[0])
        number = self[field] if default is None else self.get(field, default)
        if not isinstance(number, int) or isinstance(number, bool) or number <= 0:
            raise CheckpointError(f"config.json: {field} is {number!r}, wanted a positive number")
        return number

    def rope(self) -> Mapping[str, Any]:
        """Rotary settings in one mapping, in the older and the newer spelling of the config."""
        settings = {**(self.get("rope_scaling") or {}), **(self.get("rope_parameters") or {})}
        settings.setdefault("rope_type", settings.get("type", "default"))
        settings.setdefault("rope_theta", self.get("rope_theta", 10000.0))
        return settings

    def layers_of(self, field: str) -> list[str]:
        """A list with one name for every block, such as `layer_types`."""
        kinds, wanted = self[field], self.positive("num_hidden_layers")
        if not isinstance(kinds, list):
            raise CheckpointError(f"config.json: {field} is {kinds!r}, wanted a list")
        if len(kinds) != wanted:
            raise CheckpointError(
                f"config.json: {field} has {len(kinds)} entries, wanted num_hidden_layers = "
                f"{wanted}"
            )
        return kinds


@dataclass(frozen=True)
class Rule:
    """One kind of tensor of the checkpoint and what becomes of it.

    In the names, `{layer}` stands for the block's number and `{expert}` for every routed expert's:
    those are stacked. In a target any size may stand, as in `blk.{nextn_block}.`. `shape` names
    sizes of the family's `sizes`, so that a tensor that disagrees with the config is found before
    any work is done. Rules with one target are alternatives: a checkpoint has the source of one of
    them. Rules with one source each take their part of it.
    """

    source: str
    target: str | None  # None: left out on purpose, if it is there
    shape: tuple[str, ...] = ()  # of the source; of one expert's, where the name has {expert}
    when: str | None = None  # only in blocks for which this named size is not 0
    optional: bool = False  # nothing is missing without it
    transform: Transform | None = None  # of what nobody has read; see `convert.transforms`


@dataclass(frozen=True)
class Field:
    """One metadata value: key (the architecture's name is put before it), kind, and its source."""

    key: str
    kind: str
    read: Callable[[Config], Any]  # None: the key is left out


@dataclass(frozen=True)
class Family:
    """Everything that is known about one architecture of checkpoints."""

    name: str  # llama.cpp's name of the architecture
    title: str  # for people
    architectures: tuple[str, ...]  # config.json's `architectures`
    model_types: tuple[str, ...]  # config.json's `model_type`, where there are no architectures
    prefixes: tuple[str, ...]  # that the text model's tensors may have, the longest first
    skipped: Mapping[str, str]  # prefix of tensors that are left out -> what they are
    rules: tuple[Rule, ...]
    fields: tuple[Field, ...]
    sizes: Callable[[Config, int], Mapping[str, int]]  # named sizes of one block; "experts" is one
    vocabulary: Callable[..., Mapping[str, Value]]  # of checkpoint, rows, pre-tokenizer's name
    layers: Callable[[Config], int] = lambda config: config.positive("num_hidden_layers")
    # More of what `skipped` says, where it depends on the config.
    left_out: Callable[[Config], Mapping[str, str]] = lambda _: {}
    generated: Callable[[Config], Mapping[str, npt.NDArray[np.float32]]] = lambda _: {}
    # Settings that config.json leaves unsaid, told by the tensors (their names without prefixes).
    inferred: Callable[[Config, Mapping[str, Source]], Mapping[str, Any]] = lambda *_: {}

    def text_config(self, config: Mapping[str, Any]) -> Config:
        """The text model's part of config.json, with or without the multimodal wrapper."""
        return Config({**config, **(config.get("text_config") or {})})


def find(families: Sequence[Family], config: Mapping[str, Any]) -> Family:
    """The family that converts a checkpoint with this config.

    Raises:
        CheckpointError: no family knows the architecture.
    """
    named = config.get("architectures") or []
    named = [named] if isinstance(named, str) else named
    for family in families:
        if set(named) & set(family.architectures):
            return family
    for family in families:
        if not named and config.get("model_type") in family.model_types:
            return family
    known = ", ".join(name for family in families for name in family.architectures)
    got = ", ".join(map(str, named or [config.get("model_type")])) or "none"
    raise CheckpointError(
        f"config.json: unknown architecture {got}; gemcut converts {known}, and cuts the GGUF of "
        "any architecture that llama.cpp's own converter makes"
    )
