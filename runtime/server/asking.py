"""From a checked request to what the scheduler computes: tokens, sampling, limits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gemcut.engine import Sampling
from gemcut.errors import ContextFull, UsageError
from gemcut.llama import Model
from gemcut.runtime.batching.jobs import Job
from gemcut.runtime.language.grammar import JSON_GRAMMAR, schema_grammar
from gemcut.runtime.language.prompt import check_length, prompt_tokens
from gemcut.runtime.language.template import Template
from gemcut.runtime.language.thoughts import opens_thought, thought_of
from gemcut.runtime.server.failures import Failure
from gemcut.runtime.server.schemas import (
    ChatRequest,
    CompletionRequest,
    Generation,
    NamedTool,
    Tool,
)

_SAMPLING = (
    "temperature",
    "top_p",
    "min_p",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
)
# Of a template's variables, what only we may set.
_OURS = frozenset("self messages tools think generate enable_thinking thinking".split())
_MOST_TOLD = 1 << 17  # probabilities of prompts in one request: some 100 bytes each, and its JSON


@dataclass(frozen=True)
class Voice:
    """The model as it speaks: what a request may leave unsaid.

    Attributes:
        n_ctx: tokens that one conversation may hold.
        think: whether thoughts are asked for; None: as the template likes.
    """

    model: Model
    template: Template | None
    sampling: Sampling
    n_ctx: int
    think: bool | None


@dataclass(frozen=True)
class Asked:
    """One answer that is wanted."""

    tokens: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    stops: tuple[str, ...] = ()
    thought: bool = False  # the prompt leaves a thought open
    tools: bool = False  # calls are looked for
    one_call: bool = False  # and the first one ends the answer
    logprobs: int | None = None  # how many alternatives are shown; None: no probabilities at all
    echo: str = ""  # what the answer starts with
    told: int | None = None  # the prompt's tokens from here on are told with their probabilities
    reuse: bool = True  # what was read before need not be read again

    def job(self) -> Job:
        """What the scheduler is given."""
        logprobs = 0 if self.logprobs is None else max(1, self.logprobs)
        echo = self.told is not None
        return Job(self.tokens, self.sampling, self.max_tokens, logprobs, echo, self.reuse)


def chat(body: ChatRequest, voice: Voice) -> list[Asked]:
    """The answers that a chat request wants.

    Raises:
        Failure: 400, for what this model or server cannot do.
        ContextFull: the conversation is too long.
        EngineError: the template refuses the conversation.
    """
    tools, forced = _tools(body)
    grammar = _grammar(body, tools if forced else [])
    think = body.thinks(voice.think)
    prompt = _render(body, voice, tools, think)
    check_length(voice.model, prompt, voice.n_ctx)
    tokens = _fitting(prompt_tokens(voice.model, prompt, special=True), voice)
    thought = thought_of(voice.model, prompt, think) if grammar else None
    asked = Asked(
        tokens,
        replace(_sampling(body, voice, grammar), thought=thought),
        _limit(_first(body.max_completion_tokens, body.max_tokens), voice.n_ctx - len(tokens)),
        body.stops(),
        thought=opens_thought(prompt),
        tools=bool(tools),
        one_call=body.parallel_tool_calls is False,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        reuse=body.cache_prompt is not False,
    )
    return _several(asked, body.n or 1)


def completion(body: CompletionRequest, voice: Voice) -> list[Asked]:
    """The answers that a plain completion wants: `n` for each prompt.

    Raises:
        Failure: 400, for what this server cannot do.
        ContextFull: a prompt is too long.
    """
    if body.suffix:
        raise Failure(400, "suffix: filling in the middle is not offered", param="suffix")
    if body.best_of not in (None, 1, body.n):
        raise Failure(400, "best_of: answers are not ranked, ask for n", param="best_of")
    prompts = body.prompts()
    if len(prompts) * (body.n or 1) > 16:
        raise Failure(400, "n: more than 16 answers in one request", param="n")
    asked = [one for prompt in prompts for one in _continued(body, voice, prompt)]
    _check_told(asked)
    return asked


def text_tokens(model: Model, given: str | Sequence[int], name: str) -> list[int]:
    """The tokens of a text that is given as text or as tokens already. Raises Failure (400)."""
    if isinstance(given, str):
        return prompt_tokens(model, given, special=False)
    check_tokens(model, given, name)
    return list(given)


def text_of(model: Model, tokens: Sequence[int], name: str) -> str:
    """The text of tokens. Raises Failure (400)."""
    check_tokens(model, tokens, name)
    pieces = {token: model.piece(token) for token in set(tokens)}  # there may be millions of tokens
    return b"".join(map(pieces.__getitem__, tokens)).decode(errors="replace")


def check_tokens(model: Model, tokens: Iterable[int], name: str) -> None:
    """Raise Failure (400) for one that is not in the vocabulary."""
    n_vocab = model.n_vocab  # asked of llama.cpp once: there may be millions of tokens
    if (wrong := max(tokens, default=0)) >= n_vocab:
        message = f"{name}: token {wrong} is not in the vocabulary of {n_vocab}"
        raise Failure(400, message, param=name)


def _continued(body: CompletionRequest, voice: Voice, prompt: str | list[int]) -> list[Asked]:
    if isinstance(prompt, str):
        check_length(voice.model, prompt, voice.n_ctx)
    tokens = _fitting(text_tokens(voice.model, prompt, "prompt"), voice)
    tells = body.echo and body.logprobs is not None
    most = _first(body.max_tokens, 16)  # OpenAI's
    asked = Asked(
        tokens,
        _sampling(body, voice, body.grammar),
        0 if tells and most == 0 else _limit(most, voice.n_ctx - len(tokens)),
        body.stops(),
        logprobs=body.logprobs,
        echo=_echo(voice.model, prompt) if body.echo else "",
        told=_first_of(voice.model, prompt, tokens) if tells else None,
        reuse=body.cache_prompt is not False,
    )
    return _several(asked, body.n or 1)


def _echo(model: Model, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else text_of(model, prompt, "prompt")


def _first_of(model: Model, prompt: str | list[int], tokens: Sequence[int]) -> int:
    """Where a client's prompt begins: a BOS that it has not written is not its own."""
    return int(isinstance(prompt, str) and model.add_bos and tokens[0] == model.bos)


def _check_told(asked: Sequence[Asked]) -> None:
    """Raise Failure (400) for more probabilities of prompts than are kept for a request."""
    told = [one for one in asked if one.told is not None]
    wanted = sum(len(one.tokens) * (1 + (one.logprobs or 0)) for one in told)
    if wanted > _MOST_TOLD:
        message = (
            f"echo: the prompts' tokens times 1 + logprobs are {wanted}, at most {_MOST_TOLD} are "
            "told in one request: ask for less at once"
        )
        raise Failure(400, message, param="echo")


def _several(asked: Asked, n: int) -> list[Asked]:
    """The same request `n` times, each with a seed of its own."""
    seed = asked.sampling.seed
    seeds = [None if seed is None else seed + each for each in range(n)]
    return [replace(asked, sampling=replace(asked.sampling, seed=each)) for each in seeds]


def _first(value: int | None, otherwise: int | None) -> int | None:
    return otherwise if value is None else value


def _limit(max_tokens: int | None, room: int) -> int:
    """How many tokens an answer may have."""
    if max_tokens == 0:
        message = "max_tokens: 0 tokens are no answer, but with echo and logprobs"
        raise Failure(400, message, param="max_tokens")
    return room if max_tokens in (None, -1) else min(max_tokens, room)


def _fitting(tokens: list[int], voice: Voice) -> tuple[int, ...]:
    if not tokens:
        raise Failure(400, "the prompt is empty", param="prompt")
    if len(tokens) >= voice.n_ctx:
        raise ContextFull(len(tokens), voice.n_ctx)
    return tuple(tokens)


# --- sampling ---


def _sampling(body: Generation, voice: Voice, grammar: str | None) -> Sampling:
    said: dict[str, Any] = {name: getattr(body, name) for name in _SAMPLING}
    said["top_k"] = None if body.top_k is None else max(body.top_k, 0)
    said["seed"] = body.seed if body.seed is not None and body.seed >= 0 else None
    said["grammar"] = grammar
    if body.logit_bias:
        said["logit_bias"] = _bias(body.logit_bias, voice.model)
    return replace(voice.sampling, **{k: v for k, v in said.items() if v is not None})


def _bias(bias: Mapping[str, float], model: Model) -> tuple[tuple[int, float], ...]:
    numbers = {int(key): value for key, value in bias.items()}
    check_tokens(model, numbers, "logit_bias")
    return tuple(sorted(numbers.items()))


def _grammar(body: ChatRequest, forced: Sequence[Tool]) -> str | None:
    """The one grammar of an answer: of a call that has to be, of JSON, or the client's own."""
    schema = body.schema_wanted()
    if (schema is not None) + (body.grammar is not None) + bool(forced) > 1:
        message = "only one of grammar, response_format and a forced tool_choice shapes an answer"
        raise Failure(400, message, param="response_format")
    try:
        if forced:
            return schema_grammar({"anyOf": [_call_schema(tool) for tool in forced]})
        if schema is not None:
            return schema_grammar(schema) if schema else JSON_GRAMMAR
    except UsageError as error:
        raise Failure(400, str(error), param="tools" if forced else "response_format") from error
    return body.grammar


# --- conversations ---


def _tools(body: ChatRequest) -> tuple[list[Tool], bool]:
    """The tools the model is told of, and whether it has to call one of them."""
    tools, choice = body.tools or [], body.tool_choice
    if isinstance(choice, NamedTool):
        named = [tool for tool in tools if tool.function.name == choice.function.name]
        if not named:
            message = f"tool_choice: there is no tool {choice.function.name!r}"
            raise Failure(400, message, param="tool_choice")
        return named, True
    if choice == "required" and not tools:
        raise Failure(400, "tool_choice: required, but there are no tools", param="tool_choice")
    return ([] if choice == "none" else tools), choice == "required"


def _call_schema(tool: Tool) -> dict[str, Any]:
    arguments = tool.function.parameters or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _render(body: ChatRequest, voice: Voice, tools: Sequence[Tool], think: bool | None) -> str:
    if voice.template is None:
        raise Failure(400, "the file has no chat template: use /v1/completions")
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    described = [tool.model_dump(exclude_none=True) for tool in tools]
    extra = {k: v for k, v in (body.chat_template_kwargs or {}).items() if k not in _OURS}
    if body.reasoning_effort:
        extra["reasoning_effort"] = body.reasoning_effort
    return voice.template.render(messages, tools=described or None, think=think, **extra)
