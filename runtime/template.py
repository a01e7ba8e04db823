"""Chat templates: the Jinja text in a GGUF that turns a conversation into a prompt.

A template comes with a file from anywhere, so it runs in Jinja's sandbox and cannot change what it
is given.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any, NoReturn, TypedDict

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemcut.errors import EngineError


class Message(TypedDict):
    """One turn of a conversation."""

    role: str  # system, user or assistant
    content: str


class Template:
    """A compiled chat template. Raises EngineError if it is not valid Jinja."""

    def __init__(
        self, source: str, bos: str = "", eos: str = "", today: datetime | None = None
    ) -> None:
        """Compile it; the date that a template asks for is `today`, if given."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals |= {"raise_exception": _refuse, "strftime_now": partial(_now, today)}
        environment.filters["tojson"] = _to_json
        self._tokens = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise EngineError(f"the chat template is not valid: {error}") from error

    def render(self, messages: Sequence[Message], think: bool = False, answer: bool = True) -> str:
        """The prompt for a conversation, special tokens written out.

        Args:
            think: ask for thoughts, where the template knows `enable_thinking`.
            answer: end with the start of the model's turn.

        Raises:
            EngineError: the template refuses the conversation, or fails.
        """
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=answer,
                enable_thinking=think,
                **self._tokens,
            )
        except (
            TemplateError,
            AttributeError,
            ArithmeticError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise EngineError(f"the chat template refuses the conversation: {error}") from error


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(today: datetime | None, pattern: str) -> str:
    return (today or datetime.now()).strftime(pattern)


def _to_json(value: Any, indent: int | None = None) -> str:
    """As templates expect it: unlike Jinja's own filter, not escaped for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
