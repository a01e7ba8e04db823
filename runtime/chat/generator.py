"""One sequence at work: a prompt is read, tokens are drawn, until something ends the answer."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from gemcut.closing import Closing
from gemcut.engine import Sampling
from gemcut.errors import ContextFull, EngineError
from gemcut.llama import Context, Sampler
from gemcut.runtime.chat.reader import Reader
from gemcut.runtime.chat.timing import Timing
from gemcut.runtime.language.pieces import Piece, Splitter

# A shorter prompt, with the tokens said of the answer so far; none, if there is none.
Shorten = Callable[[list[int]], list[int]]


class Generator(Closing):
    """Draws answers in a context, one after another; what prompts share is read once.

    Attributes:
        on_read: told how much of a prompt is read, and how much of it there is to read.
        timing: of the last answer, as far as it got.
        drawn: its tokens, the one that ended it included.
        finish: why the last answer ended: "stop" (the model ended it), "length" or "cancelled".
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._reader = Reader(context)
        self.on_read: Callable[[int, int], None] | None = None
        self.timing, self.finish, self.drawn = Timing(), "", 0
        self._sampler: Sampler | None = None
        self._stopped = False

    def answer(
        self,
        prompt: list[int],
        sampling: Sampling,
        splitter: Splitter,
        limit: int | None = None,
        shorten: Shorten | None = None,
    ) -> Iterator[Piece]:
        """The answer to a prompt, piece by piece.

        Args:
            limit: most tokens of it.
            shorten: asked for another prompt when the context is full.

        Raises:
            ContextFull: at once, if the prompt does not fit.
            EngineError: llama.cpp fails.
        """
        if not prompt:
            raise EngineError("the prompt is empty: there is nothing to continue")
        if self.room(prompt) < 1:
            raise ContextFull(len(prompt), self.context.n_ctx_seq)
        sampler = Sampler(self.context.model, sampling)
        self.close()
        self._sampler, self._stopped = sampler, False
        self.timing, self.finish, self.drawn = Timing(), "", 0
        return self._split(self._draw(sampler, prompt, limit, shorten), splitter)

    @property
    def read(self) -> list[int]:
        """The tokens that the context's cache holds."""
        return self._reader.read

    def save(self, path: Path) -> None:
        """Keep in a file what can be gone on from. Raises OutputError, or EngineError."""
        self._reader.retreat()
        self.context.save(path, 0, self.read)

    def restore(self, path: Path) -> int:
        """Begin with what a file of `save` holds; how many tokens that are.

        Raises:
            EngineError: it is of another model, build or user, or longer than the context.
        """
        self._reader.drop()
        self._reader.read = self.context.restore(path, 0)
        return len(self.read)

    def stop(self) -> None:
        """End the answer that is being given; from a signal's handler or another thread, too."""
        self._stopped = True

    def close(self) -> None:
        """Free the sampler; the context stays."""
        if self._sampler:
            self._sampler.close()

    def room(self, tokens: Sequence[int]) -> int:
        """How many tokens fit behind these."""
        return self.context.n_ctx_seq - len(tokens)

    def _split(self, tokens: Iterator[int], splitter: Splitter) -> Iterator[Piece]:
        for token in tokens:
            yield from splitter.take(token)
            if splitter.stopped:
                self.finish = "stop"
                break
        yield from splitter.end()

    def _draw(
        self, sampler: Sampler, prompt: list[int], limit: int | None, shorten: Shorten | None
    ) -> Iterator[int]:
        self._prefill(prompt)
        said: list[int] = []
        while not self._stopped:
            token = self._next(sampler, said[-1:])
            if self.context.model.is_end(token):
                self.finish = "stop"
                return
            yield token
            said.append(token)
            if len(said) == limit or not self._make_room(said, shorten):
                self.finish = "length"
                return
        self.finish = "cancelled"

    def _make_room(self, said: list[int], shorten: Shorten | None) -> bool:
        """Whether there is room for the token just drawn and one after it, made if need be."""
        if self.room(self.read) >= 2:
            return True
        prompt = shorten(said) if shorten else []
        if prompt:
            self._prefill(prompt[:-1])  # the last one is read when the next is drawn
        return bool(prompt)

    def _next(self, sampler: Sampler, last: list[int]) -> int:
        """Read the last token, if it is not read yet, and draw the next."""
        begun = time.perf_counter()
        if last:
            self._decode(last, "last")
        drawn = sampler.sample(self.context)
        self.drawn += 1
        if last:
            self.timing.answer_tokens += 1
            self.timing.answer_seconds += time.perf_counter() - begun
        return drawn

    def _prefill(self, prompt: list[int]) -> None:
        """Read what the cache does not hold yet of the prompt, its last token in any case."""
        begun = time.perf_counter()
        kept = self._reader.keep(prompt)
        if not self.timing.prompt_tokens:
            self.timing.cached = kept
        # As much is read at once as is computed at once: `stop` is heard between.
        step = min(self.context.n_batch, self.context.options.n_ubatch)
        ends = range(len(prompt), kept, -step)[::-1]
        for end in ends:
            if self._stopped:
                break
            last = end == ends[-1]
            if last:
                self._reader.mark()
            self._decode(prompt[len(self.read) : end], "last" if last else "none")
            if self.on_read:
                self.on_read(end - kept, len(prompt) - kept)
        self.timing.prompt_tokens += len(self.read) - kept
        self.timing.prompt_seconds += time.perf_counter() - begun

    def _decode(self, tokens: list[int], outputs: Literal["last", "none"]) -> None:
        try:
            if outputs == "last" and len(tokens) == 1:
                self.context.step(tokens[0], len(self.read))
            else:
                self.context.decode(tokens, start=len(self.read), outputs=outputs)
        except EngineError:
            self._reader.drop()  # who knows what the cache holds: it is read again
            raise
        self.read.extend(tokens)
