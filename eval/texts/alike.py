"""Whether files have one tokenizer: their metadata, compared before anything is loaded.

Scores of two files can be compared token by token only if a token's number means the same in both.
The reference's tokens are given to every file; a file that would cut the text otherwise is refused
as well, since its users would get other tokens than those it is judged by.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemcut.engine import ModelOptions
from gemcut.errors import EngineError
from gemcut.gguf_file import GGUFFile
from gemcut.llama import Model

_PREFIX = "tokenizer.ggml."
# What decides how text is cut, besides the tokens: (key, what it is called, llama.cpp's default).
_CUTS = (
    ("model", "kind of tokenizer", None),
    ("pre", "pre-tokenizer", "default"),
)
# Files of one model differ in these when one of them was repaired: scores are the same.
_TOLD = (
    ("eos_token_id", "EOS"),
    ("eot_token_id", "EOT"),
    ("unknown_token_id", "unknown token"),
    ("padding_token_id", "padding token"),
)


def check_alike(paths: Sequence[Path]) -> tuple[str, ...]:
    """Refuse files that cannot be compared with the first; what else differs, in words.

    paths: of a split model its first file.

    Raises:
        EngineError: another vocabulary or tokenizer: the first difference.
        GGUFError: a file cannot be read.
    """
    if len(paths) < 2:
        return ()
    first, notes = paths[0], []
    wanted = _tokenizer(first)
    for other in paths[1:]:
        given = _tokenizer(other)
        if difference := _difference(wanted, given) or _other_bos(first, other, wanted, given):
            raise EngineError(
                f"{other.name} cannot be compared with {first.name}: {difference}; compare files "
                "made from one checkpoint"
            )
        notes += [f"{other.name}: {note}" for note in _remarks(wanted, given)]
    return tuple(notes)


def _tokenizer(path: Path) -> Mapping[str, Any]:
    with GGUFFile(path) as file:
        found = {key: value for key, value in file.metadata.items() if key.startswith(_PREFIX)}
        return {key.removeprefix(_PREFIX): value.data for key, value in found.items()}


def _difference(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """The first thing that makes another vocabulary or tokenizer of it, or None."""
    for key, name, default in _CUTS:
        ours, theirs = wanted.get(key, default), given.get(key, default)
        if ours != theirs:
            return f"its {name} is {_shown(theirs)} instead of {_shown(ours)}"
    if (place := _first(wanted, given, "tokens")) is not None:
        ours, theirs = _at(wanted, "tokens", place), _at(given, "tokens", place)
        return f"token {place} is {theirs} instead of {ours}"
    # Merges rank the pairs that become tokens; where there are none, scores rank the tokens.
    ranks = "merges" if "merges" in wanted or "merges" in given else "scores"
    if (place := _first(wanted, given, ranks)) is not None:
        ours, theirs = _at(wanted, ranks, place), _at(given, ranks, place)
        return f"entry {place} of the tokenizer's {ranks} is {theirs} instead of {ours}"
    return None


def _other_bos(
    first: Path, other: Path, wanted: Mapping[str, Any], given: Mapping[str, Any]
) -> str | None:
    """The token that a text begins with; what a file does not say, llama.cpp decides."""
    keys = ("bos_token_id", "add_bos_token")
    if all(wanted.get(key) == given.get(key) for key in keys):
        return None
    ours, theirs = _bos(first), _bos(other)
    if ours == theirs:
        return None
    return f"it begins a text with {theirs} instead of {ours}"


def _bos(path: Path) -> str:
    with Model.load(path, ModelOptions(vocab_only=True)) as model:
        if model.bos is None or not model.add_bos:
            return "no BOS"
        return f"the BOS {_shown(model.piece(model.bos, special=True).decode(errors='replace'))}"


def _remarks(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    found = [
        f"its {name} is {_token(given, key)} instead of {_token(wanted, key)}"
        for key, name in _TOLD
        if wanted.get(key) != given.get(key)
    ]
    if (place := _first(wanted, given, "token_type")) is not None:
        ours, theirs = (_at(each, "token_type", place) for each in (wanted, given))
        name = _at(wanted, "tokens", place)
        found.append(f"the type of token {place}, {name}, is {theirs} instead of {ours}")
    return found


def _first(wanted: Mapping[str, Any], given: Mapping[str, Any], key: str) -> int | None:
    """Where two arrays begin to differ, or None; whole lists are compared in a single step."""
    ours, theirs = _list(wanted, key), _list(given, key)
    if ours == theirs:
        return None
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def _at(tokenizer: Mapping[str, Any], key: str, place: int) -> str:
    values = _list(tokenizer, key)
    return _shown(values[place]) if 0 <= place < len(values) else "missing"


def _token(tokenizer: Mapping[str, Any], key: str) -> str:
    number = tokenizer.get(key)
    return f"{number} ({_at(tokenizer, 'tokens', number)})" if isinstance(number, int) else "none"


def _list(tokenizer: Mapping[str, Any], key: str) -> list[Any]:
    values = tokenizer.get(key)
    return values if isinstance(values, list) else []


def _shown(value: Any) -> str:
    return "none" if value is None else repr(value)[:60]
