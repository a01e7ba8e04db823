"""What a family of architectures is: a table of tensors, a table of metadata, a vocabulary.

A family declares; the engine (`convert.engine`) does. One file in `convert/families/` holds one
family, and its name is in `families.__init__`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemcut.errors import CheckpointError
from gemcut.gguf_file import Value

Array = npt.NDArray[Any]


class Config(dict[str, Any]):
    """A model's config.json: a missing field is a clear error."""

    def __missing__(self, field: str) -> Any:
        raise CheckpointError(f"config.json: no field {field!r}, which {self.who} needs")

    @property
    def who(self) -> str:
        """The architecture's name, for messages."""
        return str(self.get("model_type", "this model"))

    def positive(self, field: str) -> int:
        """A field that must be a positive whole number."""
        number = self[field]
        if not isinstance(number, int) or isinstance(number, bool) or number <= 0:
            raise CheckpointError(f"config.json: {field} is {number!r}, wanted a positive number")
        return number


@dataclass(frozen=True)
class Rule:
    """One tensor of the checkpoint and what becomes of it.

    `{layer}` in the names stands for the block's number. `shape` names sizes of the family's
    `sizes`, so that a tensor that disagrees with the config is found before any work is done.
    """

    source: str
    target: str | None  # None: left out on purpose
    shape: tuple[str, ...] = ()
    kept: bool = False  # stays F32: routers and other small tensors that steer the rest
    layers: str | None = None  # only blocks for which this named size is not 0
    transform: Callable[[Array], Array] | None = None  # of a view; must not read it


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
    architectures: tuple[str, ...]  # config.json's `architectures`
    prefixes: tuple[str, ...]  # that the text model's tensors may have, the longest first
    skipped: Mapping[str, str]  # prefix of tensors that are left out -> what they are
    rules: tuple[Rule, ...]
    fields: tuple[Field, ...]
    sizes: Callable[[Config, int], Mapping[str, int]]  # named sizes of one block
    vocabulary: Callable[..., Mapping[str, Value]]
    generated: Callable[[Config], Mapping[str, npt.NDArray[np.float32]]] = lambda _: {}

    def text_config(self, config: Mapping[str, Any]) -> Config:
        """The text model's part of config.json, with or without the multimodal wrapper."""
        return Config(config.get("text_config", config))

    def n_layers(self, config: Config) -> int:
        """Number of blocks."""
        return config.positive("num_hidden_layers")


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
    known = ", ".join(name for family in families for name in family.architectures)
    got = ", ".join(map(str, named)) or "none"
    raise CheckpointError(f"config.json: unknown architecture {got}; gemcut converts {known}")
