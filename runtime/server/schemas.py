"""What clients may ask for: the bodies of requests, checked before anything is computed.

The names are those of OpenAI's API and, beyond it, of llama-server's (`top_k`, `min_p`,
`repeat_penalty`, `grammar`, `cache_prompt`, `chat_template_kwargs`). Fields that are not named here
are ignored, because OpenAI's clients send many; those here are strict: a number in quotes is
refused. Every list is bounded, and the body as a whole by `security.BodyLimit`. The first thing
that is wrong in a list ends its check (`fail_fast`): pydantic would note every one, and take
gigabytes for a few million. While a body is checked nobody else is answered, so that what takes
pydantic microseconds a piece is bounded over the whole body, too.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from gemcut.runtime.server.failures import Failure

_MOST_TOKENS = 1 << 22
_MOST_BRACKETS = 1 << 18  # of lists and objects in a body; those within texts are counted as well
_MOST_PARTS = 10_000  # and calls, in all messages
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Token = Annotated[int, Field(ge=0)]
Tokens = Annotated[list[Token], Field(max_length=_MOST_TOKENS, fail_fast=True)]


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Raises Failure (400) if it is not JSON, or not what is wanted."""
        if (brackets := data.count(b"[") + data.count(b"{")) > _MOST_BRACKETS:
            raise Failure(400, f"the body has {brackets} brackets, wanted {_MOST_BRACKETS} at most")
        try:
            return cls.model_validate_json(data, context={"parts": 0})
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)
            first = max(found, key=lambda one: len(one["loc"]))  # where most of it was understood
            place = ".".join(str(step) for step in first["loc"] if "[" not in str(step))
            where = f"{place}: " if place else "the body: "
            message = where + first["msg"].removeprefix("Value error, ")
            raise Failure(400, message, param=place or None) from error


class StreamOptions(Body):
    """What a stream tells besides the answer."""

    include_usage: bool | None = None


class Generation(Body):
    """What chat and plain completions share."""

    model: str | None = Field(None, max_length=1000)  # any name: there is one model
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=16)
    max_tokens: int | None = Field(None, ge=-1)  # -1: until the context is full
    stop: Stop | Annotated[list[Stop], Field(max_length=16, fail_fast=True)] | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_k: int | None = Field(None, ge=-1, lt=1 << 31)
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, le=100)
    repeat_last_n: int | None = Field(None, ge=0, lt=1 << 31)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Any], Field(max_length=1024)] | None = None  # floats; below
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)  # negative: another one each time
    grammar: str | None = Field(None, max_length=1 << 18)
    cache_prompt: bool | None = None  # False: read all of the prompt anew

    @field_validator("logit_bias")
    @classmethod
    def _biases(cls, bias: dict[str, Any] | None) -> dict[str, Any] | None:
        for key, value in (bias or {}).items():
            if not (key.isascii() and key.isdecimal() and len(key) < 20):
                raise ValueError(f"{key[:40]!r} is not a token's number")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"the bias of {key} is no number")
            if not -100 <= value <= 100:
                raise ValueError(f"the bias of {key} is {value:.6g}, wanted -100 to 100")
        return bias

    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        stop = self.stop or ()
        return (stop,) if isinstance(stop, str) else tuple(stop)


# --- chat ---


def _counted(value: Any, info: ValidationInfo) -> Any:
    """The same, one more of those of the body."""
    if info.context is not None:
        info.context["parts"] += 1
        if info.context["parts"] > _MOST_PARTS:
            raise ValueError(f"more than {_MOST_PARTS} parts and calls in all messages")
    return value


class Part(Body):
    """A bit of a message; one without a text, such as a picture, is refused by the template."""

    type: str = Field(max_length=100)
    text: str | None = None
    refusal: str | None = None


Counted = BeforeValidator(_counted)
Parts = Annotated[list[Annotated[Part, Counted]], Field(max_length=_MOST_PARTS, fail_fast=True)]


class FunctionCall(Body):
    """What an earlier turn of the assistant called; arguments as JSON text."""

    name: str = Field(min_length=1, max_length=200)
    arguments: str = "{}"


class Call(Body):
    """A call of an earlier turn."""

    id: str = Field("", max_length=200)
    type: Literal["function"] = "function"
    function: FunctionCall


Calls = Annotated[list[Annotated[Call, Counted]], Field(max_length=128, fail_fast=True)]


class Message(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | None = None
    name: str | None = Field(None, max_length=200)
    tool_calls: Calls | None = None
    tool_call_id: str | None = Field(None, max_length=200)
    reasoning_content: str | None = None


class Function(Body):
    """A function the model may call; `parameters` is a JSON schema."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Body):
    """A tool: a function, the one kind there is."""

    type: Literal["function"] = "function"
    function: Function


class Named(Body):
    """A function by its name."""

    name: str


class NamedTool(Body):
    """The one tool that has to be called."""

    type: Literal["function"] = "function"
    function: Named


class JSONSchema(Body):
    """A named schema that the answer has to follow."""

    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Body):
    """The form of an answer; llama-server takes a schema beside `json_object`, too."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class ChatRequest(Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=-1)
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def thinks(self, default: bool | None) -> bool | None:
        """Whether thoughts are asked for."""
        kwargs, effort = self.chat_template_kwargs or {}, self.reasoning_effort
        for name in ("enable_thinking", "thinking"):
            if isinstance(kwargs.get(name), bool):
                return bool(kwargs[name])
        return default if effort is None else effort not in ("none", "minimal")

    def schema_wanted(self) -> Mapping[str, Any] | None:
        """The JSON schema of the answer; {} for any JSON object."""
        form = self.response_format
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return form.schema_ or {}
        if form.json_schema is None:
            message = "response_format.json_schema: missing for the type json_schema"
            raise Failure(400, message, param="response_format")
        return form.json_schema.schema_


# --- the others ---


class CompletionRequest(Generation):
    """POST /v1/completions: a text, or tokens, continued as they are."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=16, fail_fast=True)]
        | Annotated[Tokens, Field(min_length=1)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=16, fail_fast=True)]
    )
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one."""
        return _several(self.prompt)


class EmbeddingRequest(Body):
    """POST /v1/embeddings."""

    model: str | None = Field(None, max_length=1000)
    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=2048, fail_fast=True)]
        | Annotated[Tokens, Field(min_length=1)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=2048, fail_fast=True)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)

    def inputs(self) -> list[str | list[int]]:
        """The texts, one by one."""
        return _several(self.input)


class TokenizeRequest(Body):
    """POST /tokenize, as llama-server has it; with vLLM's names, too."""

    content: str = Field(validation_alias=AliasChoices("content", "prompt"))
    add_special: bool = Field(
        False, validation_alias=AliasChoices("add_special", "add_special_tokens")
    )
    parse_special: bool = True


class DetokenizeRequest(Body):
    """POST /detokenize, as llama-server has it."""

    tokens: Tokens


def _several(given: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """Texts, or tokens, of one or of several: as a list."""
    if isinstance(given, str):
        return [given]
    tokens = [each for each in given if isinstance(each, int)]
    return [tokens] if tokens else [each for each in given if not isinstance(each, int)]
