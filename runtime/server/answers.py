"""Answers on their way: tokens from the scheduler's thread, in parts that a client can be shown."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

from gemcut.errors import QueueFull
from gemcut.llama import Model
from gemcut.runtime.batching.jobs import Drawn, Ended, News, Read
from gemcut.runtime.batching.scheduler import Scheduler, Ticket
from gemcut.runtime.chat.timing import Timing
from gemcut.runtime.language.pieces import Piece, Splitter
from gemcut.runtime.language.tools import ToolCall
from gemcut.runtime.server.asking import Asked
from gemcut.runtime.server.failures import Failure
from gemcut.runtime.server.metrics import Metrics

_RETRY_AFTER = 5  # seconds: about what a short answer takes
_WAKE = 15.0  # seconds without news, after which a stream shows that it lives


@dataclass(frozen=True)
class Part:
    """A bit of an answer; the last one of each has a finish."""

    text: str = ""
    thought: bool = False
    call: ToolCall | None = None
    index: int = 0  # of the call among the answer's
    drawn: tuple[Drawn, ...] = ()  # the tokens of the text, where probabilities are asked for
    finish: str | None = None  # stop, length, tool_calls


class Choice:
    """One answer: takes what was drawn, gives parts.

    Attributes:
        asked: what it answers.
        tokens: how many were drawn for it.
        timing: how long it took, once it ended.
        stopped: nothing more of it is wanted.
    """

    def __init__(self, model: Model, asked: Asked) -> None:
        self.asked, self.tokens, self.timing, self.stopped = asked, 0, Timing(), False
        self._model = model
        self._splitter = Splitter(model, asked.thought, asked.stops, asked.tools)
        self._drawn: list[Drawn] = []  # their text is still held back
        self._calls = 0

    def begin(self) -> Iterator[Part]:
        """The prompt, where it is to be echoed and nothing is to be told of it."""
        if self.asked.echo and self.asked.told is None:
            yield Part(self.asked.echo)

    def hear(self, read: Read) -> Iterator[Part]:
        """The prompt with its probabilities."""
        yield Part(self.asked.echo, drawn=tuple(map(self._shown, read.tokens[self.asked.told :])))

    def take(self, drawn: Drawn) -> Iterator[Part]:
        """What a token completes."""
        self.tokens += 1
        if self.asked.told is not None:
            yield Part(drawn=(self._shown(drawn),))  # each of them, whether it has a text or none
        elif self.asked.logprobs is not None:
            self._drawn.append(self._shown(drawn))
        yield from self._parts(self._splitter.take(drawn.token))
        self.stopped = self.stopped or self._splitter.stopped is not None

    def end(self, ended: Ended) -> Iterator[Part]:
        """What was held back, and the finish.

        Raises:
            Failure: the answer did not end by itself.
        """
        self.timing = ended.timing
        if ended.finish == "error":
            status = 400 if ended.asked else 500
            raise Failure(status, ended.error or "the answer cannot be computed")
        if ended.finish == "cancelled" and not self.stopped:
            raise Failure(503, "the answer was cancelled")
        if not self.stopped:
            yield from self._parts(self._splitter.end())
        finish = "length" if ended.finish == "length" and not self.stopped else "stop"
        yield Part(finish="tool_calls" if self._calls and finish == "stop" else finish)

    def _parts(self, pieces: Iterator[Piece]) -> Iterator[Part]:
        for piece in pieces:
            if self.stopped:
                return
            if piece.call:
                yield self._call(piece.call)
                self.stopped = self.asked.one_call
            else:
                drawn = self._written(piece.text)
                yield Part(piece.text, piece.thought, drawn=() if piece.thought else drawn)

    def _shown(self, drawn: Drawn) -> Drawn:
        """With as many alternatives as are wanted."""
        return replace(drawn, top=drawn.top[: self.asked.logprobs])

    def _written(self, text: str) -> tuple[Drawn, ...]:
        """The tokens a text was written with: not the marks before it, nor what is held back."""
        if not self._drawn:
            return ()
        data, pieces = text.encode(), [self._model.piece(each.token, True) for each in self._drawn]
        first = next((i for i in range(len(pieces)) if b"".join(pieces[i:]).startswith(data)), 0)
        ends = list(accumulate(map(len, pieces[first:])))
        after = next((i for i, end in enumerate(ends, first + 1) if end >= len(data)), len(pieces))
        drawn, self._drawn = self._drawn[first:after], self._drawn[after:]
        return tuple(drawn)

    def _call(self, call: ToolCall) -> Part:
        self._calls += 1
        return Part(call=call, index=self._calls - 1)


class Answers:
    """The answers to one request. Close them: what nobody reads is not computed.

    Args:
        timeout: seconds after which they are aborted.
        record: told the timing of each that had the machine to itself, in another thread.
    """

    def __init__(
        self,
        model: Model,
        asked: Sequence[Asked],
        metrics: Metrics,
        timeout: float,
        record: Callable[[Timing], None] | None = None,
    ) -> None:
        self.choices = [Choice(model, one) for one in asked]
        self._events: asyncio.Queue[tuple[int, News]] = asyncio.Queue()
        self._metrics, self._record, self._begun = metrics, record, time.monotonic()
        self._failure: Failure | None = None
        self._tickets: list[Ticket] = []
        self._closed, self._loop = False, asyncio.get_running_loop()
        late = Failure(504, f"the answer took longer than {timeout:g} s", "timeout")
        self._timer = self._loop.call_later(timeout, self.abort, late)

    async def begin(self, scheduler: Scheduler) -> None:
        """Ask for them in another thread: reading a grammar may take a while.

        Raises:
            Failure: 503, there are too many requests already; or why they were aborted meanwhile.
            EngineError: one cannot be computed.
        """
        try:
            await asyncio.to_thread(self._submit, scheduler)
        except QueueFull as error:
            raise Failure(503, str(error), "queue_full", retry_after=_RETRY_AFTER) from error
        if self._failure:
            raise self._failure

    def _submit(self, scheduler: Scheduler) -> None:
        for number, choice in enumerate(self.choices):
            deliver = partial(_deliver, self._loop, self._arrived, number)
            self._tickets.append(scheduler.submit(choice.asked.job(), deliver))
            if self._closed:  # in the other thread, which may not have seen this one
                self._tickets[-1].cancel()
                break

    def close(self) -> None:
        """Give up what is still computed."""
        self._closed = True
        self._timer.cancel()
        for ticket in [*self._tickets]:
            ticket.cancel()

    def abort(self, failure: Failure) -> None:
        """End with an error."""
        self._failure = self._failure or failure
        self.close()

    async def parts(self) -> AsyncIterator[tuple[int, Part] | None]:
        """Each part with the number of its answer; None after a while without news.

        Raises:
            Failure: the answers do not come to a good end.
        """
        for number, choice in enumerate(self.choices):
            for part in choice.begin():
                yield number, part
        left = len(self.choices)
        while left:
            try:
                async with asyncio.timeout(_WAKE):
                    number, event = await self._events.get()
            except TimeoutError:
                yield None
                continue
            left -= isinstance(event, Ended)
            for part in self._take(number, event):
                yield number, part

    def _arrived(self, number: int, event: News) -> None:
        if isinstance(event, Ended):  # counted even if nobody reads it any more
            self._metrics.whole.observe(time.monotonic() - self._begun)
            if self._record and event.alone:  # which waits for a file
                self._loop.run_in_executor(None, self._record, event.timing)
        self._events.put_nowait((number, event))

    def _take(self, number: int, event: News) -> Iterator[Part]:
        choice = self.choices[number]
        if isinstance(event, Ended):
            if self._failure:
                raise self._failure
            yield from choice.end(event)
        elif isinstance(event, Read):
            yield from choice.hear(event)
        elif not choice.stopped:
            if not choice.tokens:
                self._metrics.first_token.observe(time.monotonic() - self._begun)
            yield from choice.take(event)
            if choice.stopped:
                self._tickets[number].cancel()

    def usage(self) -> dict[str, object]:
        """Tokens as OpenAI counts them: a prompt that is answered several times counts once."""
        prompts = {choice.asked.tokens: choice.timing for choice in reversed(self.choices)}
        prompt = sum(map(len, prompts))
        answer = sum(choice.tokens for choice in self.choices)
        cached = sum(timing.cached for timing in prompts.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def _deliver(
    loop: asyncio.AbstractEventLoop,
    arrived: Callable[[int, News], None],
    number: int,
    event: News,
) -> None:
    """Hand an event over, in the scheduler's thread."""
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(arrived, number, event)
