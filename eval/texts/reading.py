"""Reading texts: a file, a folder of files, or a file with a text on every line (.jsonl).

    notes.txt      a text
    folder/        every file in it is a text; its domain is the first folder in its name
    texts.jsonl    on every line one of
                       {"text": "..."}
                       {"prompt": "..."}                                    what a user says
                       {"messages": [{"role": "user", "content": "..."}, ...]}
                   and, if liked, "domain" and "id"

What is hidden or empty in a folder is passed over; what is not text is refused.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gemcut.errors import TextError, printable
from gemcut.eval.texts.text import MOST_BYTES, Text, Turn, read_bytes

_MOST_TEXTS = 1 << 17
_MOST_LINE = 1 << 24  # bytes
_MOST_TURNS = 1 << 10
MOST_NAME = 100  # characters of an id or a domain
_KINDS = ("text", "prompt", "messages")
_ROLES = ("system", "developer", "user", "assistant")


def read_texts(paths: Sequence[Path]) -> list[Text]:
    """All texts at some paths, in the order of the paths; in a folder sorted by their names.

    A file in a folder is named from there; where there are several paths, by the folder, too.

    Raises:
        TextError: nothing there, unreadable, too much of it, not text, a line that is not as the
            module says, or two texts of one name.
    """
    texts: dict[str, Text] = {}
    n_bytes = 0
    for path, name in zip(paths, _names(paths), strict=True):
        for text in _read(path, name):
            if text.name in texts:
                raise TextError(f"{path}: {text.name} is there twice; name each text, and id, once")
            texts[text.name] = text
            n_bytes += text.n_bytes
            if len(texts) > _MOST_TEXTS or n_bytes > MOST_BYTES:
                raise TextError(
                    f"{path}: too much to read: wanted at most {_MOST_TEXTS} texts of "
                    f"{MOST_BYTES >> 20} MiB together; choose some of them"
                )
    if not texts:
        raise TextError("no text to score: name at least one text file")
    return list(texts.values())


def _names(paths: Sequence[Path]) -> list[str]:
    """What the texts' names begin with: of two paths of one name, each is called by its whole."""
    if len(paths) == 1 and paths[0].is_dir():
        return [""]
    same = Counter(path.name for path in paths)
    return [path.name if same[path.name] == 1 else str(path) for path in paths]


def _read(path: Path, name: str) -> Iterator[Text]:
    if path.is_dir():
        return _folder(path, name)
    return _file(path, name, "", read_bytes(path))


def _folder(folder: Path, name: str) -> Iterator[Text]:
    empty = True
    for path in sorted(islice(_files(folder), _MOST_TEXTS + 1)):
        if not (data := read_bytes(path)).strip():
            continue
        empty = False
        parts = [*filter(None, [name]), *path.relative_to(folder).parts]
        yield from _file(path, "/".join(parts), parts[0] if parts[1:] else "", data)
    if empty:
        raise TextError(f"{folder}: there is no text in this folder; wanted files in UTF-8")


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder. Links to folders are not followed: they may lead round and round."""

    def refuse(error: OSError) -> None:
        raise TextError(f"{error.filename}: cannot read this folder: {error.strerror}") from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [each for each in folders if not each.startswith(".")]
        paths = (Path(parent, each) for each in files if not each.startswith("."))
        yield from (path for path in paths if path.is_file())


def _file(path: Path, name: str, domain: str, data: bytes) -> Iterator[Text]:
    name, domain = printable(name), printable(domain)
    if path.suffix.lower() == ".jsonl":
        return (text_of(entry, f"{name}:{number}", domain) for number, entry in entries(name, data))
    return iter([Text.decoded(name, data, domain)])


def entries(name: str, data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in a .jsonl file with the numbers of their lines; empty lines are passed over.

    Raises:
        TextError: a line is too long or not JSON, or there is none.
    """
    empty = True
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            empty = False
            yield number, _parsed(line, f"{name}:{number}")
    if empty:
        raise TextError(f"{name}: there is no line in this file; wanted a text on each, as JSON")


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    if len(line) > _MOST_LINE:
        raise TextError(f"{where}: {len(line)} bytes, wanted at most {_MOST_LINE} on a line")
    try:
        entry = json.loads(line.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise TextError(f"{where}: not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise TextError(f"{where}: {_shown(entry)}, wanted an object in braces")
    return entry


def text_of(entry: dict[str, Any], where: str, domain: str = "") -> Text:
    """One line's text; `where`, its file and line, is its name unless it has an id.

    Raises:
        TextError: it is none.
    """
    label = _label(entry, "id", where)
    name = f"{where.rpartition(':')[0]}:{label}" if label else where
    domain = _label(entry, "domain", where) or domain
    kinds = [kind for kind in _KINDS if entry.get(kind) is not None]
    if len(kinds) != 1:
        wanted = " or ".join(f'"{kind}"' for kind in _KINDS)
        raise TextError(f"{where}: has {len(kinds)} of {wanted}, wanted one")
    if kinds == ["messages"]:
        return Text.conversation(name, _turns(entry["messages"], where), domain)
    said = _said(entry[kinds[0]], where, kinds[0])
    if kinds == ["prompt"]:
        return Text.conversation(name, [("user", said)], domain)
    return Text.of(name, said, domain)


def _turns(messages: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not 0 < len(messages) <= _MOST_TURNS:
        raise TextError(f'{where}: "messages" is no list of 1 to {_MOST_TURNS} messages')
    found = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise TextError(
                f"{where}: a message of the role {_shown(role)}, wanted {', '.join(_ROLES)}"
            )
        found.append((str(role), _said(message.get("content"), where, "content")))
    return tuple(found)


def _said(content: Any, where: str, key: str) -> str:
    if not isinstance(content, str) or not content.strip():
        raise TextError(f'{where}: "{key}" is {_shown(content)}, wanted text')
    return content


def _label(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    label = str(value) if isinstance(value, str | int) else ""
    if not 0 < len(label) <= MOST_NAME or not label.isprintable():
        raise TextError(
            f'{where}: "{key}" is {_shown(value)}, wanted 1 to {MOST_NAME} printable characters'
        )
    return label


def _shown(value: Any) -> str:
    return repr(value[:40]) if isinstance(value, str) else f"of the type {type(value).__name__}"
