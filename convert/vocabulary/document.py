"""tokenizer.json and tokenizer_config.json, checked: tokens and their ids, added tokens, merges.

The format is that of the `tokenizers` library. Everything else in this package relies on what is
checked here: an id has one token, a token has one id, and merges join tokens to a token.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import add
from typing import Any

from gemcut.convert.checkpoint import Checkpoint
from gemcut.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types

JSON, SETTINGS = "tokenizer.json", "tokenizer_config.json"
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")

# Spellings of control tokens that some checkpoints mark as plain text.
_LOOKS_SPECIAL = re.compile(
    r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL
)


@dataclass(frozen=True)
class Added:
    """A token that is looked for in a text before anything else is done to it."""

    id: int
    content: str
    special: bool  # control, and not shown when it is generated

    @property
    def kind(self) -> int:
        """llama.cpp's token type."""
        return CONTROL if self.special or _LOOKS_SPECIAL.fullmatch(self.content) else USER_DEFINED

    @property
    def text(self) -> str:
        """What llama.cpp looks for; plain text has spaces where ▁ stands for them."""
        return self.content if self.kind == CONTROL else self.content.replace("▁", " ")


@dataclass(frozen=True)
class Document:
    """A BPE tokenizer's files."""

    where: str  # tokenizer.json's place, for messages
    content: Mapping[str, Any]
    settings: Mapping[str, Any]  # of tokenizer_config.json
    ids: Mapping[str, int]  # the model's tokens
    added: Mapping[str, Added]  # by content, in the order of the file

    @property
    def model(self) -> Mapping[str, Any]:
        """The BPE model's part of tokenizer.json."""
        model: Mapping[str, Any] = self.content["model"]
        return model

    @cached_property
    def by_id(self) -> dict[int, str]:
        """All tokens, as they are spelled in the files. Raises CheckpointError: ids used twice."""
        model = zip(self.ids.values(), self.ids, strict=True)
        added = ((token.id, token.content) for token in self.added.values())
        return unique(self.where, [*model, *added])

    @cached_property
    def special_names(self) -> set[str]:
        """The tokens that tokenizer_config.json names as special."""
        return special_names(self.settings)

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """Pairs of tokens, those to be joined first first.

        Raises:
            CheckpointError: there are none, or one does not join two tokens to a token.
        """
        listed = self.model.get("merges")
        if not isinstance(listed, list) or not listed:
            raise CheckpointError(f"{self.where}: no merges")
        pairs = [entry.split(" ") if type(entry) is str else entry for entry in listed]
        if not self._are_pairs(pairs):
            return [self._pair(entry) for entry in listed]  # which finds the one that is none
        return list(map(tuple, pairs))

    def _are_pairs(self, pairs: list[Any]) -> bool:
        """Whether all are pairs that join two tokens to a token; half a million in a blink."""
        if set(map(type, pairs)) != {list} or set(map(len, pairs)) != {2}:
            return False
        parts = list(chain.from_iterable(pairs))
        if set(map(type, parts)) != {str}:
            return False
        return self.ids.keys() >= {*parts, *map(add, parts[::2], parts[1::2])}

    def _pair(self, entry: Any) -> tuple[str, str]:
        parts = entry.split(" ") if isinstance(entry, str) else entry
        texts = isinstance(parts, list) and all(isinstance(part, str) for part in parts)
        if not texts or len(parts) != 2:
            raise CheckpointError(f"{self.where}: the merge {entry!r} is not a pair of tokens")
        left, right = parts
        for token in (left, right, left + right):
            if token not in self.ids:
                raise CheckpointError(f"{self.where}: merge {entry!r}: no token {token!r}")
        return left, right

    def table(self, size: int) -> list[str | None]:
        """The token of every id below `size`, None where there is none.

        Raises:
            CheckpointError: a token's id is not below `size`, or is used twice.
        """
        highest = max(self.by_id, default=0)
        if highest >= size:
            raise CheckpointError(
                f"{self.where}: {len(self.by_id)} tokens, {self.by_id[highest]!r} with id "
                f"{highest}; the embedding has {size} rows"
            )
        return [self.by_id.get(number) for number in range(size)]


def read(checkpoint: Checkpoint) -> Document:
    """Read a checkpoint's BPE tokenizer.

    Raises:
        CheckpointError: a missing or damaged file, another model than BPE, or ids that are no ids.
    """
    content, settings = checkpoint.json(JSON), checkpoint.json(SETTINGS, {})
    where = str(checkpoint.folder / JSON)
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(f"{where}: no model with a vocab")
    if model.get("type", "BPE") != "BPE":
        raise CheckpointError(f"{where}: a {model['type']} tokenizer; gemcut converts BPE")
    for field in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise CheckpointError(f"{where}: {field} {model[field]!r}, which llama.cpp cannot do")
    ids = model["vocab"]
    if set(map(type, ids.values())) != {int} or min(ids.values()) < 0:
        ids = {token: number_of(where, token, number) for token, number in ids.items()}
    added = _added(where, content.get("added_tokens") or [], settings)
    return Document(where, content, settings, ids, added)


def without_model(where: str, settings: Mapping[str, Any], late: Mapping[str, Any]) -> Document:
    """What is known of a tokenizer that has no tokenizer.json.

    Args:
        late: added_tokens.json, which has contents and ids; tokenizer_config.json counts more.

    Raises:
        CheckpointError: ids that are no ids.
    """
    listed = [{"content": token, "id": number} for token, number in late.items()]
    return Document(where, {}, settings, {}, _added(where, listed, settings))


def _added(where: str, listed: Sequence[Any], settings: Mapping[str, Any]) -> dict[str, Added]:
    """Added tokens, and those of tokenizer_config.json, which count where both differ."""
    listed = list(listed)
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        if isinstance(token, dict) and str(number).isdecimal():
            listed.append({**token, "id": int(number)})
    special = special_names(settings)
    found: dict[str, Added] = {}
    for token in listed:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise CheckpointError(f"{where}: the added token {token!r} has no content")
        text = token["content"]
        number = number_of(where, text, token.get("id"))
        if text in found and found[text].id != number:
            raise CheckpointError(f"{where}: token {text!r} has the ids {found[text].id}, {number}")
        found[text] = Added(number, text, bool(token.get("special")) or text in special)
    return found


def special_names(settings: Mapping[str, Any]) -> set[str]:
    """The tokens that tokenizer_config.json names as special."""
    named = [value for key, value in settings.items() if key.endswith("_token")]
    for key in ("extra_special_tokens", "additional_special_tokens"):
        extra = settings.get(key) or []
        named += extra.values() if isinstance(extra, dict) else extra
    return {text for value in named if (text := content_of(value)) is not None}


def content_of(value: Any) -> str | None:
    """A token's text, which may be wrapped in an object."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def number_of(where: str, token: str, number: Any) -> int:
    """A token's id. Raises CheckpointError: it's not a whole number from 0 on."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise CheckpointError(f"{where}: token {token!r} has the id {number!r}, wanted 0 or more")
    return number


def unique(where: str, tokens: Collection[tuple[int, str]]) -> dict[int, str]:
    """Ids -> tokens. Raises CheckpointError: an id has two tokens."""
    found = dict(tokens)
    if len(found) == len(set(tokens)):
        return found
    found = {}
    for number, token in tokens:
        if found.setdefault(number, token) != token:
            raise CheckpointError(
                f"{where}: the tokens {found[number]!r} and {token!r} have one id, {number}"
            )
    return found


def distinct(where: str, tokens: Sequence[str]) -> list[str]:
    """The texts of all tokens, as llama.cpp gets them: two that are the same would end it.

    Raises:
        CheckpointError: two are the same.
    """
    if len(set(tokens)) == len(tokens):
        return list(tokens)
    first: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if first.setdefault(token, number) != number:
            raise CheckpointError(f"{where}: tokens {first[token]} and {number} are both {token!r}")
    return list(tokens)
