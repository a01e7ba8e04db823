"""The documents that clients get: whole answers, and the chunks of streamed ones.

They are OpenAI's. Beyond those fields they hold `reasoning_content` (thoughts, as DeepSeek and
llama-server name them) and `timings` (llama-server's).
"""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from gemcut import __version__
from gemcut.llama import Model
from gemcut.runtime.batching.jobs import Drawn
from gemcut.runtime.chat.timing import Timing
from gemcut.runtime.language.tools import ToolCall
from gemcut.runtime.server.answers import Answers, Part

Document = dict[str, Any]


@dataclass(frozen=True)
class Reply(ABC):
    """What all documents of one reply share."""

    model: Model
    name: str  # of the model, as clients see it
    with_usage: bool = False  # a stream ends with its usage
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def _document(self, kind: str, prefix: str, choices: list[Document]) -> Document:
        return {
            "id": f"{prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.name,
            "system_fingerprint": f"gemcut-{__version__}",
            "choices": choices,
        }

    def _end(self, document: Document, answers: Answers) -> Document:
        timing = answers.choices[-1].timing
        return document | {"usage": answers.usage(), "timings": timings(timing)}

    def usage_chunk(self, answers: Answers) -> Document:
        """The last chunk of a stream whose client asked for it."""
        return self._end(self.chunk(0, Part()) | {"choices": []}, answers)

    def opening(self, number: int) -> Iterable[Document]:
        """What comes before the first part of an answer."""
        return ()

    @abstractmethod
    def chunk(self, number: int, part: Part) -> Document:
        """One part of an answer, streamed."""

    @abstractmethod
    def whole(self, answers: Answers, parts: list[list[Part]]) -> Document:
        """All the answers at once, `parts` by answer."""


class ChatReply(Reply):
    """Of /v1/chat/completions."""

    def opening(self, number: int) -> Iterable[Document]:
        """Says who speaks."""
        yield self._chunk(number, {"role": "assistant", "content": ""})

    def chunk(self, number: int, part: Part) -> Document:
        """A delta."""
        delta: Document = {}
        if part.call:
            delta["tool_calls"] = [{"index": part.index} | _call(part.call)]
        elif part.text:
            delta["reasoning_content" if part.thought else "content"] = part.text
        return self._chunk(number, delta, self._logprobs(part.drawn), part.finish)

    def _chunk(
        self,
        number: int,
        delta: Document,
        logprobs: Document | None = None,
        finish: str | None = None,
    ) -> Document:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._document("chat.completion.chunk", "chatcmpl", [choice])

    def whole(self, answers: Answers, parts: list[list[Part]]) -> Document:
        """A chat.completion."""
        choices = [self._choice(number, told) for number, told in enumerate(parts)]
        return self._end(self._document("chat.completion", "chatcmpl", choices), answers)

    def _choice(self, number: int, parts: list[Part]) -> Document:
        text = "".join(part.text for part in parts if not part.thought)
        thought = "".join(part.text for part in parts if part.thought)
        calls = [_call(part.call) for part in parts if part.call]
        message: Document = {"role": "assistant", "content": text or (None if calls else "")}
        if thought:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = calls
        return {
            "index": number,
            "message": message,
            "logprobs": self._logprobs([drawn for part in parts for drawn in part.drawn]),
            "finish_reason": parts[-1].finish,
        }

    def _logprobs(self, drawn: Iterable[Drawn]) -> Document | None:
        told = [
            self._token(one.token, one.logprob) | {"top_logprobs": self._top(one)} for one in drawn
        ]
        return {"content": told} if told else None

    def _top(self, drawn: Drawn) -> list[Document]:
        return [self._token(token, logprob) for token, logprob in drawn.top]

    def _token(self, token: int, logprob: float | None) -> Document:
        data = self.model.piece(token, special=True)
        text = data.decode(errors="replace")
        return {"token": text, "logprob": _finite(logprob), "bytes": list(data)}


class TextReply(Reply):
    """Of /v1/completions."""

    def chunk(self, number: int, part: Part) -> Document:
        """More of the text."""
        choice = self._choice(number, part.text, part.drawn, part.finish)
        return self._document("text_completion", "cmpl", [choice])

    def whole(self, answers: Answers, parts: list[list[Part]]) -> Document:
        """A text_completion."""
        choices = []
        for number, told in enumerate(parts):
            text = "".join(part.text for part in told)
            drawn = [one for part in told for one in part.drawn]
            choices.append(self._choice(number, text, drawn, told[-1].finish))
        return self._end(self._document("text_completion", "cmpl", choices), answers)

    def _choice(
        self, number: int, text: str, drawn: Iterable[Drawn], finish: str | None
    ) -> Document:
        logprobs = self._logprobs(list(drawn))
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, drawn: list[Drawn]) -> Document | None:
        if not drawn:
            return None
        tokens = [self._text(one.token) for one in drawn]
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(one.logprob) for one in drawn],
            "top_logprobs": [self._top(one) for one in drawn],
            "text_offset": [*accumulate(map(len, tokens[:-1]), initial=0)],
        }

    def _top(self, drawn: Drawn) -> Document | None:
        """By their texts; the first token of a prompt has none."""
        if drawn.logprob is None:
            return None
        return {self._text(token): _finite(logprob) for token, logprob in drawn.top}

    def _text(self, token: int) -> str:
        return self.model.piece(token, special=True).decode(errors="replace")


def _finite(logprob: float | None) -> float | None:
    """JSON has no infinity; OpenAI writes -9999 for what cannot be."""
    return None if logprob is None else max(logprob, -9999.0)


def timings(timing: Timing) -> Document:
    """How long it took, with llama-server's names."""
    return {
        "cache_n": timing.cached,
        "prompt_n": timing.prompt_tokens,
        "prompt_ms": 1000 * timing.prompt_seconds,
        "prompt_per_second": timing.prefill,
        "predicted_n": timing.answer_tokens,
        "predicted_ms": 1000 * timing.answer_seconds,
        "predicted_per_second": timing.decode,
    }


def _call(call: ToolCall) -> Document:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
