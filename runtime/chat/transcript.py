"""A conversation as a file: JSON whose messages are in the shape of OpenAI's API.

Other programs' files are read, too: a list of messages, or an object that has one as "messages".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemcut import artefact
from gemcut.errors import TextError
from gemcut.runtime.language.template import Message

_WHAT = "a conversation"
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Transcript:
    """What was said, and the settings by the names that the user gives them."""

    messages: tuple[Message, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it, complete or not at all. Raises OutputError."""
        document = {"messages": list(self.messages), "settings": dict(self.settings)}
        artefact.write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Transcript":
        """Read one.

        Raises:
            TextError: there is no such file, or it is no conversation of texts; where and why.
        """
        text = artefact.read_text(path, _WHAT, TextError)
        try:
            document = artefact.parse(text)
            whole = document if isinstance(document, dict) else {"messages": document}
            return cls(_messages(whole.get("messages")), _settings(whole.get("settings", {})))
        except (TypeError, ValueError, RecursionError) as error:
            raise TextError(f"{path}: not {_WHAT}: {error}") from error


def _messages(raw: Any) -> tuple[Message, ...]:
    if not isinstance(raw, list):
        raise TypeError('wanted a list of "messages", each with a "role" and a "content"')
    found = tuple(_message(each, f"message {number}") for number, each in enumerate(raw, 1))
    if any(message["role"] == "system" for message in found[1:]):
        raise ValueError("a system message is not the first one")
    return found


def _message(raw: Any, what: str) -> Message:
    if not isinstance(raw, dict) or not isinstance(raw.get("role"), str):
        raise TypeError(f"{what} has no role")
    if raw["role"] not in _ROLES:
        raise ValueError(f"{what} is of {raw['role']!r:.40}, wanted {', '.join(_ROLES)}")
    return {"role": _ROLES[raw["role"]], "content": _content(raw.get("content"), what)}


def _content(raw: Any, what: str) -> str:
    """A text, or the texts of a list of parts."""
    parts = raw if isinstance(raw, list) else [{"type": "text", "text": raw}]
    if any(not isinstance(part, dict) or part.get("type") != "text" for part in parts):
        raise ValueError(f"{what} has a part that is no text: images and sound are not read")
    text = "".join(artefact.string(part.get("text"), f"{what}: content") for part in parts)
    text.encode()  # JSON can write half a character, which is no text
    return text


def _settings(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise TypeError("the settings are no object")
    json.dumps(raw, ensure_ascii=False).encode()  # no half characters there either
    return raw
