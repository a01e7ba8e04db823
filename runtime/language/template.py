"""Chat templates: the Jinja text in a GGUF that turns a conversation into a prompt.

Conversations come as clients of OpenAI's API write them, calls of tools and their results included;
templates want them a little otherwise. What a user writes is not told apart from what the template
writes: the text of a special token in a message is read as that token, as llama-server does it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NoReturn, TypedDict

from jinja2 import TemplateError

from gemcut.errors import EngineError, UsageError
from gemcut.runtime.language.sandbox import Sandbox, TooMuch

_MOST_SOURCE = 1 << 20
_FAILURES = (
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


class Message(TypedDict):
    """One turn of a conversation, in its shortest form."""

    role: str  # system, user or assistant; developer is system; tool for the results of calls
    content: str  # or a list of {"type": "text", "text": ...}; may be None beside tool_calls


class Template:
    """A compiled chat template. Raises EngineError if it is not valid Jinja, or too large."""

    def __init__(
        self, source: str, bos: str = "", eos: str = "", today: datetime | None = None
    ) -> None:
        """Compile it; the date that a template asks for is `today`, if given."""
        if len(source) > _MOST_SOURCE:
            raise EngineError(
                f"the chat template has {len(source)} characters, wanted at most {_MOST_SOURCE}"
            )
        self._sandbox = Sandbox()
        self._sandbox.globals |= {"raise_exception": _refuse, "strftime_now": partial(_now, today)}
        self._sandbox.add_filter("tojson", _to_json)
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._sandbox.budget()
        try:
            self._template = self._sandbox.from_string(source)
        except _FAILURES as error:
            raise EngineError(f"the chat template is not valid: {error}") from error

    def render(
        self,
        messages: Sequence[Message] | Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | None = None,
        generate: bool = True,
        **extra: Any,
    ) -> str:
        """The prompt for a conversation, special tokens written out.

        Args:
            messages: as OpenAI's API has them; the arguments of calls may be text or objects, what
                an assistant thought is its `reasoning_content`.
            tools: as OpenAI's API has them.
            think: whether to think first, where the template knows `enable_thinking` or `thinking`;
                None: as it does by itself.
            generate: end with the start of the model's turn.
            extra: other variables of the template, such as `reasoning_effort`.

        Raises:
            UsageError: a message is malformed, or holds an image or the like.
            EngineError: the template refuses the conversation, fails, or does too much.
        """
        wanted = {} if think is None else {"enable_thinking": think, "thinking": think}
        variables = {**self._tokens, **wanted, **extra}
        variables |= {"tools": list(tools) if tools else None, "add_generation_prompt": generate}
        turns = [_turn(message, number) for number, message in enumerate(messages)]
        failure: BaseException | None = None
        for each in _manners(variables, turns):
            self._sandbox.budget()
            try:
                return self._template.render(**each)
            except _FAILURES as error:
                failure = failure or error
                if isinstance(error, TooMuch):
                    break
        raise EngineError(f"the chat template refuses the conversation: {failure}") from failure


def _manners(variables: dict[str, Any], turns: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The variables as most templates take them, then as some others need them."""
    yield {**variables, "messages": turns}
    if any("tool_calls" in turn for turn in turns):  # they add the arguments of a call to a text
        yield {**variables, "messages": [_with_texts(turn) for turn in turns]}
    if not variables["tools"]:  # they go through the tools without asking if there are any
        yield {**variables, "messages": turns, "tools": []}


class _Arguments(dict[str, Any]):
    """The arguments of a call: an object, which is JSON where a template writes it out."""

    def __str__(self) -> str:
        return _to_json(self)


def _turn(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A message as templates want it."""
    where = f"messages[{number}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError(f"{where} is {str(message)[:40]!r}, wanted an object with a role")
    turn = {key: value for key, value in message.items() if value is not None}
    turn["role"] = "system" if message["role"] == "developer" else message["role"]
    turn["content"] = _text(message.get("content"), where)
    if calls := turn.pop("tool_calls", None):
        turn["tool_calls"] = [_call(call, where) for call in _list(calls, f"{where}.tool_calls")]
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str):  # each family has a name of its own for it
        turn |= {"reasoning_content": thought, "reasoning": thought, "thinking": thought}
    return turn


def _text(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in _list(content, f"{where}.content"):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            raise UsageError(f"{where} has a part of type {kind!r}: the model is given text alone")
        texts.append(text)
    return "".join(texts)


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError(f"{where} has a call without the name of a function")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: the arguments of a call are not JSON: {error}") from error
    if not isinstance(arguments, Mapping):
        raise UsageError(f"{where}: the arguments of a call are no JSON object")
    named = {"name": function["name"], "arguments": _Arguments(arguments)}
    return {"type": "function", **call, **named, "function": {**function, **named}}


def _with_texts(turn: dict[str, Any]) -> dict[str, Any]:
    """A message whose calls have their arguments as texts."""
    if "tool_calls" not in turn:
        return turn
    calls = []
    for call in turn["tool_calls"]:
        text = {"arguments": str(call["arguments"])}
        calls.append({**call, **text, "function": {**call["function"], **text}})
    return {**turn, "tool_calls": calls}


def _list(value: Any, where: str) -> Iterable[Any]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"{where} is {str(value)[:40]!r}, wanted a list")
    return value


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(today: datetime | None, pattern: str) -> str:
    return (today or datetime.now()).strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As templates expect it: unlike Jinja's own filter, not escaped for HTML."""
    if indent is not None and not 0 <= indent <= 16:
        raise ValueError(f"an indent of {indent}, wanted 0 to 16")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_listed,
    )


def _listed(value: Any) -> Any:
    """What a filter such as `map` makes, which JSON does not know."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")
