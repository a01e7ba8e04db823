"""What a family's file says of a tiny checkpoint to record, and how its values are drawn."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, TypeVar

Shape = tuple[int, ...]
Draw = tuple[float, float]  # mean and standard deviation

T = TypeVar("T")

NEVER = "$^"

# By the end of a tensor's name; matrices that match nothing get a variance of 1 / columns.
DRAWS: Mapping[str, Draw] = {
    r".*[qk]_norm\.weight": (1.5, 0.6),  # attention that is sharp enough to matter
    r".*norm.*\.weight": (1, 0.3),
    r".*bias": (0, 0.3),
    r".*embed_tokens\.weight": (0, 1),
}
GAINS: Mapping[str, float] = {r".*lm_head\.weight": 2}  # else all tokens would be about as likely


@dataclass(frozen=True)
class Case:
    """A checkpoint to be.

    Attributes:
        config: config.json, spelt as in the published checkpoints.
        tokenizer: a folder in tests/fixtures/tokenizers.
        extra: tensors of published checkpoints that transformers leaves out (such as those of
            layers for speculative decoding), with their shapes.
        dropped: names that transformers saves and published checkpoints do not have.
        dtypes: types other than BF16, by regular expressions for whole names.
        draws: what `DRAWS` would get wrong, in the same form.
        unused: names of tensors that take no part in the text model's logits.
        generation: generation_config.json beside the special tokens.
    """

    config: dict[str, Any]
    tokenizer: str
    extra: Mapping[str, Shape] = field(default_factory=dict)
    dropped: str = NEVER
    dtypes: Mapping[str, str] = field(default_factory=dict)
    draws: Mapping[str, Draw] = field(default_factory=dict)
    unused: str = NEVER
    generation: Mapping[str, Any] = field(default_factory=dict)

    def published(self, saved: Mapping[str, Shape]) -> dict[str, Shape]:
        """Names and shapes as published, by those that transformers saves."""
        kept = {k: shape for k, shape in saved.items() if not re.fullmatch(self.dropped, k)}
        return dict(sorted((kept | dict(self.extra)).items()))

    @property
    def text(self) -> dict[str, Any]:
        """The text model's config, wherever it is."""
        return {**self.config, **self.config.get("text_config", {})}

    @property
    def words(self) -> list[int]:
        """The ids that stand for themselves, and not for pieces of an image or a sound."""
        others = [value for key, value in self.config.items() if "token" in key]
        return [number for number in range(self.text["vocab_size"]) if number not in others]

    def entry(self, name: str, shape: Shape) -> list[Any]:
        """A tensor's line in tensors.json: type, shape, lowest and highest value."""
        dtype = _first(self.dtypes, name) or "BF16"
        columns = shape[-1] if shape else 1
        mean, deviation = _first(self.draws, name) or _first(DRAWS, name) or (0, columns**-0.5)
        deviation *= _first(GAINS, name) or 1
        half = sqrt(3) * deviation  # a uniform distribution's half width
        return [dtype, list(shape), round(mean - half, 6), round(mean + half, 6)]


def _first(table: Mapping[str, T], name: str) -> T | None:
    return next((value for key, value in table.items() if re.fullmatch(key, name)), None)
