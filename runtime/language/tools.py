"""Calls of tools as models write them, read into one form; what is none stays text.

Each family has its own way: Gemma 4's `call:name{key:<|"|>text<|"|>}`, JSON with a name and
arguments (Hermes, Qwen, Mistral, Llama 3), and tags around every argument (Qwen3-Coder, GLM 4).
"""

import json
import re
import secrets
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

# What a call is written between; None: it goes on to the answer's end, or to the next call.
CALL_MARKS: Mapping[str, str | None] = {
    "<|tool_call>": "<tool_call|>",
    "<tool_call>": "</tool_call>",
    "<tool_calls>": "</tool_calls>",
    "<TOOLCALL>": "</TOOLCALL>",
    "<seed:tool_call>": "</seed:tool_call>",
    "[TOOL_CALLS]": None,
    "<|python_tag|>": None,
}
_ID_LETTERS = string.ascii_letters + string.digits
_MOST_DEPTH = 50
_QUOTE = '<|"|>'
_KEY_END, _VALUE_END, _TEXT_END = map(re.compile, (":", r"[,}\]]", re.escape(_QUOTE)))
_TAGGED = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>\s*)?\Z", re.DOTALL)
_KEYED = re.compile(r"([\w.-]+)\s*(<arg_key>.*</arg_value>)?", re.DOTALL)
_NAMED = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)")
_BETWEEN = re.compile(r"[ \t\r\n;]*")  # calls in an answer that is nothing else
_BARE = re.compile(r"""\{\s*"(?:name|type|function)"\s*:""")


def _new_id() -> str:
    """Nine letters and digits: what the strictest templates (Mistral's) take back."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(9))


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model wants called."""

    name: str
    arguments: str  # JSON, an object
    id: str = field(default_factory=_new_id, compare=False)


def read_calls(text: str) -> list[ToolCall] | None:
    """The calls in what stood between the marks; None if it is not all calls."""
    try:
        if text.lstrip().startswith("call:"):
            return _gemma(text.strip())
        for found in (_tagged(text), _keyed(text), _named(text)):
            if found:
                return found
        return _from_json(json.loads(text))
    except (ValueError, RecursionError):
        return None


def read_bare_calls(text: str) -> list[ToolCall] | None:
    """The calls in an answer that is nothing else: JSON objects, with semicolons between them."""
    calls: list[ToolCall] = []
    decoder, at = json.JSONDecoder(), _end_of(_BETWEEN, text, 0)
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            calls += _from_json(value)
            at = _end_of(_BETWEEN, text, at)
    except (ValueError, RecursionError):
        return None
    return calls or None


def may_be_bare(text: str) -> bool:
    """Whether an answer that begins like this may be calls and nothing else."""
    start = text.lstrip()
    whole = _BARE.match(start)
    if whole or not start:
        return True
    squeezed = re.sub(r"\s", "", start)
    return any(f'{{"{word}":'.startswith(squeezed) for word in ("name", "type", "function"))


def _end_of(expression: re.Pattern[str], text: str, at: int) -> int:
    match = expression.match(text, at)
    return match.end() if match else at


def call_of(name: str, arguments: str) -> ToolCall | None:
    """A call whose name was written apart from its arguments; None if they are no JSON object."""
    try:
        return _call(name, json.loads(arguments or "{}")) if name else None
    except (ValueError, RecursionError):
        return None


def _from_json(value: Any) -> list[ToolCall]:
    if isinstance(value, list):
        return [call for each in value for call in _from_json(each)]
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise ValueError("no call")
    arguments = value.get("arguments", value.get("parameters", {}))
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return [_call(value["name"], {} if arguments is None else arguments)]


def _named(text: str) -> list[ToolCall]:
    """Mistral's: the name, then its arguments in JSON, as often as there are calls."""
    calls, at, decoder = [], 0, json.JSONDecoder()
    while match := _NAMED.match(text, at):
        value, at = decoder.raw_decode(text, match.end())
        calls.append(_call(match[1], value))
    return calls if not text[at:].strip() else []


def _tagged(text: str) -> list[ToolCall]:
    match = _TAGGED.match(text)
    if not match:
        return []
    arguments = {}
    for piece in _pieces(match[2], "<parameter=", "</parameter>"):
        key, closed, value = piece.partition(">")
        if closed:
            arguments[key.strip()] = _said(value.removeprefix("\n").removesuffix("\n"))
    return [_call(match[1].strip(), arguments)]


def _keyed(text: str) -> list[ToolCall]:
    match = _KEYED.fullmatch(text.strip())
    if not match:
        return []
    arguments = {}
    for piece in _pieces(match[2] or "", "<arg_key>", "</arg_value>"):
        key, _, rest = piece.partition("</arg_key>")
        _, opened, value = rest.partition("<arg_value>")
        if opened:
            arguments[key.strip()] = _said(value)
    return [_call(match[1], arguments)]


def _pieces(text: str, begin: str, end: str) -> Iterator[str]:
    """What stands between two marks, as often as they are there; each is looked for once."""
    at = 0
    while (start := text.find(begin, at)) >= 0 and (stop := text.find(end, start)) >= 0:
        yield text[start + len(begin) : stop]
        at = stop + len(end)


def _said(text: str) -> Any:
    """An argument without quotes: what is JSON is meant as JSON, the rest as text."""
    try:
        return json.loads(text) if text else text
    except ValueError:
        return text


def _call(name: str, arguments: Any) -> ToolCall:
    """A call. Raises ValueError for arguments that are no object, and for what no JSON holds: NaN,
    infinities, halves of characters."""
    if not isinstance(arguments, dict):
        raise ValueError("arguments are an object")
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    (name + text).encode()
    return ToolCall(name, text)


# --- Gemma 4 ---


def _gemma(text: str) -> list[ToolCall]:
    name, brace, _ = text.removeprefix("call:").partition("{")
    reader = _Gemma(text, text.index("{"))
    arguments = reader.value(0)
    if not brace or not name.strip() or reader.rest().strip():
        raise ValueError("no call")
    return [_call(name.strip(), arguments)]


class _Gemma:
    """Reads Gemma 4's own notation: like JSON, texts between <|"|>, keys mostly bare."""

    def __init__(self, text: str, at: int) -> None:
        self._text, self._at = text, at

    def rest(self) -> str:
        """What was not read."""
        return self._text[self._at :]

    def value(self, depth: int) -> Any:
        """The value that begins here."""
        if depth > _MOST_DEPTH:
            raise ValueError("nested too deeply")
        if self._take(_QUOTE):
            return self._quoted()
        if self._take("{"):
            found: dict[str, Any] = {}
            while not self._take("}"):
                key = self._quoted() if self._take(_QUOTE) else self._until(_KEY_END)
                self._want(":")
                found[key.strip()] = self.value(depth + 1)
                self._take(",")
            return found
        if self._take("["):
            items = []
            while not self._take("]"):
                before = self._at
                items.append(self.value(depth + 1))
                self._take(",")
                if self._at == before:  # at a "}", which no value holds
                    raise ValueError("wanted ]")
            return items
        return _said(self._until(_VALUE_END).strip())

    def _until(self, ends: re.Pattern[str]) -> str:
        # One search for all: one for each end would go on to the last of the text, time and again.
        end = ends.search(self._text, self._at)
        if end is None:
            raise ValueError("it ends too early")
        text, self._at = self._text[self._at : end.start()], end.start()
        return text

    def _quoted(self) -> str:
        text = self._until(_TEXT_END)
        self._want(_QUOTE)
        return text

    def _take(self, wanted: str) -> bool:
        while wanted != _QUOTE and self._text[self._at : self._at + 1].isspace():
            self._at += 1
        found = self._text.startswith(wanted, self._at)
        self._at += len(wanted) if found else 0
        return found

    def _want(self, wanted: str) -> None:
        if not self._take(wanted):
            raise ValueError(f"wanted {wanted}")
