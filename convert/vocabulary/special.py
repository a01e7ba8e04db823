"""Special tokens: their ids, and which of them a text begins and ends with.

The rules are those of gguf-py's SpecialVocab in the llama.cpp that is pinned: what the
post-processor of tokenizer.json does counts more than what tokenizer_config.json says, and
config.json fills in ids that neither has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gemcut.convert.checkpoint import Checkpoint
from gemcut.convert.vocabulary.document import Document, content_of, number_of
from gemcut.convert.vocabulary.structure import parts
from gemcut.errors import CheckpointError
from gemcut.gguf_file import Value

# Roles -> keys, in llama.cpp's spelling. `cls` has none, and stands in for `bos`.
KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}
_ADDED = ("bos", "eos", "sep")  # may be put around a text
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

Names = dict[str, str]  # role -> token


def special_tokens(
    checkpoint: Checkpoint, document: Document, size: int
) -> tuple[dict[str, int], dict[str, bool]]:
    """Roles -> ids, and roles -> whether the token is put around every text.

    Args:
        size: number of tokens; ids of config.json beyond them are left out.

    Raises:
        CheckpointError: an id of config.json is negative.
    """
    settings, added = document.settings, document.added
    names = {role: name for role in _NAMED if (name := content_of(settings.get(f"{role}_token")))}
    if "cls" in names:
        names.setdefault("bos", names["cls"])
    if "sep" in names:
        names.setdefault("eos", names["sep"])
    around = _around(document.content.get("post_processor"), names)
    for role in _ADDED:
        if isinstance(said := settings.get(f"add_{role}_token"), bool):
            around.setdefault(role, said)
    ids = {role: added[name].id for role, name in names.items() if name in added}
    for role in _NAMED:
        number = _config_id(checkpoint.config, f"{role}_token_id")
        if number is not None and role not in ids:
            number = number_of(str(checkpoint.folder / "config.json"), role, number)
            ids |= {role: number} if number < size else {}
    return ids, around


def values(ids: Mapping[str, int], around: Mapping[str, bool]) -> dict[str, Value]:
    """Both as metadata."""
    found = {key: Value("u32", ids[role]) for role, key in KEYS.items() if role in ids}
    for role in _ADDED:
        if role in around:
            found[f"tokenizer.ggml.add_{role}_token"] = Value("bool", around[role])
    return found


def named(document: Document, roles: Mapping[str, str]) -> dict[str, int]:
    """Ids of tokens that a family gives a role. Raises CheckpointError: there is no such token."""
    for role, name in roles.items():
        if name not in document.added:
            raise CheckpointError(
                f"{document.where}: no added token {name!r}, which is to be its {role}"
            )
    return {role: document.added[name].id for role, name in roles.items()}


def _config_id(config: Mapping[str, Any], key: str) -> int | None:
    """An id of config.json, of its text model's part if need be."""
    found = config.get(key)
    if found is None and isinstance(config.get("text_config"), dict):
        found = config["text_config"].get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _around(processor: Mapping[str, Any] | None, names: Names) -> dict[str, bool]:
    """What the post-processor puts around a text; it also gives roles to tokens without one."""
    found: dict[str, bool] = {}
    for part in parts(processor, "processors"):
        if part.get("type") == "ByteLevel":
            found = {"bos": False, "eos": False} | found
        elif part.get("type") == "RobertaProcessing":
            found |= {"bos": True, "eos": True, "sep": True}
            for role in ("cls", "sep"):
                if part.get(role):
                    names.setdefault(role, part[role][0])
        elif part.get("type") == "TemplateProcessing":
            first, last = _single(part.get("single") or [], names, found)
            _pair(part.get("pair") or [], first, last, names, found)
    return found


def _single(
    template: Sequence[Any], names: Names, found: dict[str, bool]
) -> tuple[str | None, str | None]:
    """The tokens at both ends of the template for one text."""
    if len(template) < 2:
        return None, None
    first, last = _special(template[0]), _special(template[-1])
    if first:
        if first not in (names.get("bos"), names.get("cls")):
            names.setdefault("bos", first)
            names.setdefault("cls", first)
        found["bos"] = first in (names["bos"], names.get("cls"))
    if last:
        if last != names.get("eos"):  # what the files call the end ends a turn, then
            free = next((role for role in ("eot", "eom") if role not in names), None)
            if free and "eos" in names:
                names[free] = names["eos"]
            names["eos"] = last
        found["eos"] = True
    return first, last


def _pair(
    template: Sequence[Any],
    first: str | None,
    last: str | None,
    names: Names,
    found: dict[str, bool],
) -> None:
    """Whether the template for two texts has a separator between them."""
    start = 1 if template and first and _special(template[0]) == first else 0
    stop = -1 if template and last and _special(template[-1]) == last else None
    inner = template[start:stop]
    if len(inner) < 3 or (_text(inner[0]), _text(inner[-1])) != ("A", "B"):
        return
    separators = {name for role in ("sep", "eos") if (name := names.get(role))}
    between = [_special(item) for item in inner[1:-1]]
    found["sep"] = (between[0] in separators and not last) or (
        len(between) == 2 and between[1] in separators
    )
    if found["sep"] and "eos" in names:
        names.setdefault("sep", names["eos"])


def _special(item: Mapping[str, Any]) -> str | None:
    found = item.get("SpecialToken", {}).get("id")
    return found if isinstance(found, str) else None


def _text(item: Mapping[str, Any]) -> str | None:
    found = item.get("Sequence", {}).get("id")
    return found if isinstance(found, str) else None
