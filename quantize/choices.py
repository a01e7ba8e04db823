"""What the options of a program's items mean: how each writes its tensor."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gemcut.runtime.placement.problem import Item, Option
from gemcut.tensor_sensitivity import LocalError


@dataclass(frozen=True)
class Way:
    """How an option writes a tensor."""

    tensor: str  # of the source
    type: str
    padded_to: int | None = None  # units of the feed-forward
    key: str | None = None  # of its entry in the sensitivity; None: it is never cut
    error: LocalError | None = None
    below: bool = False  # the default range
    candidate: str = ""  # of that entry's
    experts: tuple[str, ...] = ()  # the type of each; `type` is the one that most have


@dataclass(frozen=True)
class Choices:
    """The items of a model, and what their options mean."""

    items: tuple[Item, ...]
    ways: Mapping[tuple[str, str, bool], Way]  # by item, option's name, and whether it is padded
    fused: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # tensor -> its parts

    def way(self, item: str, option: Option) -> Way:
        """What a chosen option means."""
        return self.ways[item, option.name, option.padded]

    def within_default(self) -> "Choices":
        """Without what is below the default range, where that leaves something."""
        return replace(self, items=tuple(self._within(item) for item in self.items))

    def _within(self, item: Item) -> Item:
        above = tuple(o for o in item.options if not self.way(item.name, o).below)
        parts = tuple(self._within(part) for part in item.parts)
        return replace(item, options=above or item.options, parts=parts)
