"""Conversations: a prompt in, pieces of an answer out.

The context holds one conversation. What a new prompt shares with what was read before is not read
again, and whatever goes wrong, the conversation is what it was before. Nothing here prints, plans
where tensors go, or talks HTTP.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gemcut.closing import Closing
from gemcut.engine import Sampling
from gemcut.errors import ContextFull, EngineError
from gemcut.llama import Context, Model
from gemcut.runtime.chat.generator import Generator
from gemcut.runtime.chat.timing import Timing
from gemcut.runtime.language.pieces import Piece, Splitter
from gemcut.runtime.language.prompt import check_length, open_template, prompt_tokens
from gemcut.runtime.language.template import Message
from gemcut.runtime.language.thoughts import opens_thought, thought_of

_NO_TEMPLATE = "the file has no chat template: each message is continued as plain text"


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
    """A conversation in a context, which closes with it, and so does the model.

    Args:
        sampling: None for `recommended_sampling`.
        system: the system message.
        think: ask for thoughts, where the model's template knows how; None: as it likes.

    Attributes:
        messages: the conversation so far, thoughts left out.
        sampling, think: as above, for the next answer.
        stops: texts that end an answer; they are not part of it.
        shifts: when the context is full, go on without the oldest exchanges instead of ending.
        unread: how many of the oldest exchanges the model reads no more, for want of room.
        generator: what draws the answers; it has their timing, too.
        note: what the user should know about this file, or None.
    """

    def __init__(
        self,
        context: Context,
        sampling: Sampling | None = None,
        system: str | None = None,
        think: bool | None = None,
    ) -> None:
        self.context, self.model, self.think = context, context.model, think
        self.template = open_template(self.model)
        self.note = None if self.template else _NO_TEMPLATE
        self.sampling = sampling or recommended_sampling(self.model)
        self.generator = Generator(context)
        self.messages: list[Message] = []
        self.system = system
        self.stops: tuple[str, ...] = ()
        self.shifts, self.unread = False, 0

    @property
    def timing(self) -> Timing:
        """Of the last answer, as far as it got."""
        return self.generator.timing

    @property
    def finish(self) -> str:
        """Why the last answer ended: "stop" (the model ended it), "length" or "cancelled"."""
        return self.generator.finish

    @property
    def system(self) -> str | None:
        """The system message; setting it leaves the rest of the conversation as it is."""
        first = self.messages[0] if self.messages else None
        return str(first["content"]) if first and first["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        said = self.messages[1:] if self.system is not None else self.messages
        self.messages = [{"role": "system", "content": text}, *said] if text else [*said]

    def send(self, text: str, max_tokens: int | None = None) -> Iterator[Piece]:
        """Say something; the answer, piece by piece.

        The exchange joins `messages` when the answer ends or its iterator is closed, with what was
        said by then; an answer without text leaves the conversation as it was.

        Raises:
            ContextFull: at once, if the conversation outgrew the context. No exchange is left out
                unless `shifts` says so.
            EngineError: at once, if the template refuses the conversation.
        """
        if self.template is None:
            return self.generate(text, max_tokens)
        messages: list[Message] = [*self.messages, {"role": "user", "content": text}]
        return self._reply(messages, self.sampling, max_tokens)

    def retry(self, max_tokens: int | None = None) -> Iterator[Piece]:
        """Answer the last message again; the new answer takes the old one's place.

        Raises:
            EngineError: as `send`, or nothing was said yet.
        """
        messages, seed = self.messages[: self._last_exchange() + 1], self.sampling.seed
        # The same seed would say the same.
        sampling = self.sampling if seed is None else replace(self.sampling, seed=seed + 1)
        return self._reply(messages, sampling, max_tokens)

    def undo(self) -> str:
        """Drop the last exchange; what its message said. Raises EngineError if there is none."""
        last = self._last_exchange()
        text = str(self.messages[last]["content"])
        self.messages = self.messages[:last]
        self.unread = min(self.unread, max(0, _exchanges(self.messages) - 1))
        return text

    def reset(self) -> None:
        """Start a new conversation with the same system message."""
        system, self.messages, self.unread = self.system, [], 0
        self.system = system

    def resume(self, messages: Sequence[Message]) -> None:
        """Go on with another conversation; `length` may be more than the context has.

        Raises:
            EngineError: the model's template refuses it; this conversation is as before.
        """
        self._prompt(messages, 0)
        self.messages, self.unread = [*messages], 0

    def generate(self, prompt: str, max_tokens: int | None = None) -> Iterator[Piece]:
        """Continue a text as it is: no template, no history, no special tokens in it.

        Raises:
            ContextFull, EngineError: at once, if the text does not fit the context, or is empty.
        """
        check_length(self.model, prompt, self.context.n_ctx_seq)
        tokens = prompt_tokens(self.model, prompt, special=False)
        splitter = Splitter(self.model, stops=self.stops)
        return self.generator.answer(tokens, self.sampling, splitter, max_tokens)

    def stop(self) -> None:
        """End the answer that is being given; from a signal's handler or another thread, too."""
        self.generator.stop()

    def length(self) -> int:
        """Tokens that the conversation takes of the context."""
        if self.template is None or not self.messages:
            return len(self.generator.read)
        return len(self._prompt(self.messages, self.unread))

    def close(self) -> None:
        """Free everything, the model included. Closing again does nothing."""
        self.generator.close()
        self.model.close()

    def _reply(
        self, messages: list[Message], sampling: Sampling, max_tokens: int | None
    ) -> Iterator[Piece]:
        """Check what can be checked now; the answer itself comes as it is asked for."""
        tokens, unread = self._fitting(messages, self.unread, [])

        def shorten(said: list[int]) -> list[int]:
            try:
                tokens, self.unread = self._fitting(messages, self.unread, said)
            except ContextFull:  # this exchange alone fills the context, so its answer ends
                return []
            return tokens

        text = self._text(messages, unread)
        if sampling.grammar:  # it waits while the model thinks
            sampling = replace(sampling, thought=thought_of(self.model, text, self.think))
        splitter = Splitter(self.model, opens_thought(text), self.stops)
        answer = self.generator.answer(tokens, sampling, splitter, max_tokens, shorten)
        self.unread = unread
        return self._record(messages, answer)

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

    def _fitting(
        self, messages: list[Message], unread: int, said: list[int]
    ) -> tuple[list[int], int]:
        """A prompt that fits, with what is said of its answer, and how much it leaves out.

        Where it has to leave out exchanges, the oldest go until a quarter of the context is free:
        the rest has to be read anew, and not with every message.
        """
        tokens, room = self._prompt(messages, unread) + said, self.generator.room
        wanted = self.context.n_ctx_seq // 4 if room(tokens) < 1 and self.shifts else 0
        while room(tokens) < wanted and unread + 1 < _exchanges(messages):
            unread += 1
            tokens = self._prompt(messages, unread) + said
        if room(tokens) < 1:
            raise ContextFull(len(tokens), self.context.n_ctx_seq)
        return tokens, unread

    def _prompt(self, messages: Sequence[Message], unread: int) -> list[int]:
        return prompt_tokens(self.model, self._text(messages, unread), special=True)

    def _text(self, messages: Sequence[Message], unread: int) -> str:
        if self.template is None:
            raise EngineError("the file has no chat template: it continues text only")
        return self.template.render(_without(messages, unread), think=self.think)

    def _last_exchange(self) -> int:
        """Where the last exchange begins in `messages`."""
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise EngineError("the conversation is empty: there is no exchange to go back to")
        return asked[-1]


def _exchanges(messages: Sequence[Message]) -> int:
    return sum(message["role"] == "user" for message in messages)


def _without(messages: Sequence[Message], oldest: int) -> list[Message]:
    """The messages without so many of the oldest exchanges; a system message stays."""
    begins = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return [*messages[: begins[0]], *messages[begins[oldest] :]] if oldest else [*messages]
