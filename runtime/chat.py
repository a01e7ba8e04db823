"""Conversations: a prompt in, pieces of an answer out.

The context holds one conversation. What a new prompt shares with what was read before is not read
again. Nothing here prints, plans where tensors go, or talks HTTP.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gemcut.closing import Closing
from gemcut.engine import ContextOptions, ModelOptions, Sampling
from gemcut.errors import EngineError
from gemcut.llama import Context, Model, Sampler
from gemcut.runtime.pieces import Piece, Splitter, opens_thought
from gemcut.runtime.template import Message, Template

_N_CTX, _N_BATCH = 8192, 2048
_NO_TEMPLATE = "the file has no chat template: each message is continued as plain text"


@dataclass
class Timing:
    """How long an answer took; the time its reader needed is not counted."""

    cached: int = 0  # tokens of the prompt that an earlier turn had read
    prompt_tokens: int = 0  # tokens of the prompt read now
    prompt_seconds: float = 0.0
    answer_tokens: int = 0  # tokens computed one by one: all drawn but the first
    answer_seconds: float = 0.0

    @property
    def prefill(self) -> float:
        """Tokens of the prompt read per second."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_tokens else 0.0

    @property
    def decode(self) -> float:
        """Tokens of the answer computed per second; 0 if it had one at most."""
        return self.answer_tokens / self.answer_seconds if self.answer_tokens else 0.0


def open_chat(
    path: Path | str,
    model: ModelOptions | None = None,
    context: ContextOptions | Callable[[Model], ContextOptions] | None = None,
    sampling: Sampling | Mapping[str, Any] | None = None,
    system: str | None = None,
    think: bool = False,
) -> "Chat":
    """Load a GGUF file for a conversation. Close it, or use it as a context manager.

    Args:
        sampling: as `Chat` takes it, or what to change of the sampling that the file recommends.

    The others are `Chat`'s.

    Raises:
        EngineError: the file cannot be loaded or the context cannot be made.
    """
    loaded = Model.load(path, model)
    try:
        if isinstance(sampling, Mapping):
            sampling = replace(recommended_sampling(loaded), **sampling)
        return Chat(loaded, context, sampling, system, think)
    except BaseException:
        loaded.close()
        raise


def conversation_options(
    model: Model, n_ctx: int | None = None, threads: int | None = None
) -> ContextOptions:
    """A context for talking: 8192 tokens unless told otherwise, logits for the last one only."""
    n_ctx = n_ctx or min(model.n_ctx_train, _N_CTX)
    return ContextOptions(n_ctx, n_batch=min(n_ctx, _N_BATCH), n_outputs=1, threads=threads)


def recommended_sampling(model: Model) -> Sampling:
    """llama.cpp's defaults, with what the file's `general.sampling.*` says in their place."""
    plain = Sampling()

    def said(key: str, default: float) -> float:
        written = model.metadata(f"general.sampling.{key}")
        try:
            number = float(written or default)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise EngineError(f"the file's general.sampling.{key} is {written!r}, wanted a number")
        return number

    return Sampling(
        temperature=said("temp", plain.temperature),
        top_k=int(said("top_k", plain.top_k)),
        top_p=said("top_p", plain.top_p),
        min_p=said("min_p", plain.min_p),
        repeat_penalty=said("penalty_repeat", plain.repeat_penalty),
        repeat_last_n=int(said("penalty_last_n", plain.repeat_last_n)),
    )


class Chat(Closing):
    """A conversation with a loaded model, which closes with it.

    Args:
        context: options, or what gives them for the model; None for `conversation_options`.
        sampling: None for `recommended_sampling`.
        system: the system message.
        think: ask for thoughts, where the model's template knows how.

    Attributes:
        messages: the conversation so far, thoughts left out.
        note: what the user should know about this file, or None.
        timing: of the last answer, as far as it got.
        finish: why the last answer ended: "stop" (the model ended it) or "length".
    """

    def __init__(
        self,
        model: Model,
        context: ContextOptions | Callable[[Model], ContextOptions] | None = None,
        sampling: Sampling | None = None,
        system: str | None = None,
        think: bool = False,
    ) -> None:
        self.model, self.think = model, think
        source = model.chat_template
        bos, eos = _written(model, model.bos), _written(model, model.eos)
        self.template = Template(source, bos, eos) if source else None
        self.note = None if source else _NO_TEMPLATE
        context = context or conversation_options
        options = context(model) if callable(context) else context
        self.context = Context(model, options)
        self.sampler = Sampler(model.n_vocab, sampling or recommended_sampling(model))
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages = [*self._system]
        self.timing = Timing()
        self.finish: str | None = None
        self._read: list[int] = []  # the tokens that the cache holds, as far as is known

    def send(self, text: str, max_tokens: int | None = None) -> Iterator[Piece]:
        """Say something; the answer, piece by piece.

        The exchange joins `messages` when the answer ends or its iterator is closed, with what was
        said by then; an answer without text leaves the conversation as it was.

        Raises:
            EngineError: at once, if the template refuses the conversation or it outgrew the
                context. No turn is dropped in silence: `reset` starts anew.
        """
        if self.template is None:
            return self.generate(text, max_tokens)
        messages: list[Message] = [*self.messages, {"role": "user", "content": text}]
        prompt = self.template.render(messages, think=self.think)
        answer = self._start(prompt, True, max_tokens)
        return self._record(messages, answer)

    def generate(self, prompt: str, max_tokens: int | None = None) -> Iterator[Piece]:
        """Continue a text as it is: no template, no history, no special tokens in it.

        Raises:
            EngineError: at once, if the text does not fit the context.
        """
        return self._start(prompt, False, max_tokens)

    def reset(self) -> None:
        """Start a new conversation with the same system message."""
        self.messages = [*self._system]

    def close(self) -> None:
        """Free everything, the model included. Closing again does nothing."""
        self.sampler.close()
        self.model.close()

    def _record(self, messages: list[Message], answer: Iterator[Piece]) -> Iterator[Piece]:
        said: list[str] = []
        try:
            for piece in answer:
                if not piece.thought:
                    said.append(piece.text)
                yield piece
        finally:
            if said:
                self.messages = [*messages, {"role": "assistant", "content": "".join(said)}]

    def _start(self, prompt: str, special: bool, max_tokens: int | None) -> Iterator[Piece]:
        """Check what can be checked now; the answer itself comes as it is asked for."""
        tokens = self._tokens(prompt, special)
        room = self.context.n_ctx_seq - len(tokens)
        if room < 1 or not tokens:
            raise EngineError(
                f"the prompt has {len(tokens)} tokens, the context {self.context.n_ctx_seq}, an "
                "answer needs 1 at least: start a new conversation or use a larger context"
            )
        splitter = Splitter(self.model, special and opens_thought(prompt))
        limit = room if max_tokens is None else min(room, max_tokens)
        return self._answer(tokens, splitter, limit)

    def _tokens(self, prompt: str, special: bool) -> list[int]:
        """The prompt's tokens. Most templates write BOS themselves; a second one would harm."""
        tokens = self.model.tokenize(prompt, add_special=False, parse_special=special).tolist()
        bos = self.model.bos
        if self.model.add_bos and bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return [int(token) for token in tokens]

    def _answer(self, prompt: list[int], splitter: Splitter, limit: int) -> Iterator[Piece]:
        self.sampler.reset()
        self.finish = None
        self._prefill(prompt)
        for token in self._draw(limit):
            yield from splitter.take(token)
        yield from splitter.end()

    def _prefill(self, prompt: list[int]) -> None:
        """Read what the cache does not hold yet of the prompt, its last token in any case."""
        kept = self.context.forget(0, _shared(prompt[:-1], self._read))
        self._read = prompt[:kept]
        begun, step = time.perf_counter(), self.context.n_batch
        for start in range(kept, len(prompt), step):
            last = start + step >= len(prompt)
            self._decode(prompt[start : start + step], "last" if last else "none")
        self.timing = Timing(kept, len(prompt) - kept, time.perf_counter() - begun)

    def _draw(self, limit: int) -> Iterator[int]:
        """Tokens, until the model ends the answer or there are `limit` of them."""
        token = self.sampler.sample(self.context)
        for drawn in range(1, limit + 1):
            if self.model.is_end(token):
                self.finish = "stop"
                return
            yield token
            if drawn < limit:
                token = self._next(token)
        self.finish = "length"

    def _next(self, token: int) -> int:
        begun = time.perf_counter()
        self._decode([token], "last")
        drawn = self.sampler.sample(self.context)
        self.timing.answer_tokens += 1
        self.timing.answer_seconds += time.perf_counter() - begun
        return drawn

    def _decode(self, tokens: list[int], outputs: Literal["last", "none"]) -> None:
        self.context.decode(tokens, start=len(self._read), outputs=outputs)
        self._read += tokens


def _shared(first: list[int], second: list[int]) -> int:
    """How many tokens two lists have in common from the start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _written(model: Model, token: int | None) -> str:
    """A special token as a template writes it."""
    return "" if token is None else model.piece(token, special=True).decode(errors="replace")
