"""A loaded file to talk with: whole answers or piece by piece, plain text, vectors."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemcut.closing import Closing
from gemcut.engine import Memory
from gemcut.errors import UsageError
from gemcut.llama.embedder import Embedder
from gemcut.runtime.chat.chat import Chat, recommended_sampling
from gemcut.runtime.chat.timing import Timing
from gemcut.runtime.language.pieces import Piece
from gemcut.runtime.loading.loading import Loaded
from gemcut.runtime.placement.placement import Placement


@dataclass(frozen=True)
class Answer:
    """What the model said; `str()` of it is the text.

    thought: what it thought before, apart from the text.
    finish: why it ended: "stop" (the model ended it), "length" or "cancelled".
    """

    text: str
    thought: str
    finish: str
    timing: Timing

    def __str__(self) -> str:
        """The text alone."""
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON knows it, with tokens per second."""
        return asdict(self) | {"prefill": self.timing.prefill, "decode": self.timing.decode}


class Session(Closing):
    """A conversation with a loaded file, for one thread at a time. Closing it frees the model.

    Attributes:
        conversation: its messages, sampling, system message, and how to go back in it.
    """

    def __init__(self, loaded: Loaded, conversation: Chat) -> None:
        self._loaded, self.conversation = loaded, conversation

    def chat(self, text: str, max_tokens: int | None = None) -> Answer:
        """Say something, and wait for the whole answer; both join the conversation.

        Raises:
            UsageError: max_tokens is less than one.
            ContextFull: the conversation outgrew the context.
            EngineError: the file's template refuses the conversation.
        """
        return self._whole(self.stream(text, max_tokens))

    def stream(self, text: str, max_tokens: int | None = None) -> Iterator[Piece]:
        """Say something; the answer, piece by piece. Closing the iterator ends it.

        Raises:
            as `chat`, at once.
        """
        return self._timed(self.conversation.send(text, _at_least_one(max_tokens)))

    def complete(self, text: str, max_tokens: int | None = None) -> Answer:
        """Continue a text as it is: no template, and no part of the conversation.

        Raises:
            UsageError: max_tokens is less than one.
            ContextFull, EngineError: the text does not fit the context, or is empty.
        """
        pieces = self.conversation.generate(text, _at_least_one(max_tokens))
        return self._whole(self._timed(pieces))

    def embed(self, text: str) -> NDArray[np.float32]:
        """The vector of a text, of length 1: float32 [n_embd].

        Raises:
            EngineError: the model is not made for it, or the text is too long.
        """
        return self._embedder.embed(self._loaded.model.tokenize(text))

    @property
    def placement(self) -> Placement:
        """Where the tensors are, and what was predicted."""
        return self._loaded.placement

    @property
    def memory(self) -> Memory:
        """What it takes by llama.cpp's log."""
        return self._loaded.memory

    def close(self) -> None:
        """Free the model and all that came of it. Closing again does nothing."""
        self.conversation.close()

    @cached_property
    def _embedder(self) -> Embedder:
        placement = self._loaded.placement
        return Embedder(self._loaded.model, placement.context.n_ctx, placement.context.threads)

    def _timed(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The pieces; how long they took corrects later predictions."""
        yield from pieces
        self._loaded.recorder.take(self.conversation.timing)

    def _whole(self, pieces: Iterator[Piece]) -> Answer:
        said: dict[bool, list[str]] = {True: [], False: []}
        for piece in pieces:
            said[piece.thought].append(piece.text)
        text, thought = "".join(said[False]), "".join(said[True])
        return Answer(text, thought, self.conversation.finish, replace(self.conversation.timing))


def _at_least_one(max_tokens: int | None) -> int | None:
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}, wanted 1 or more, or None for no limit")
    return max_tokens


def open_session(
    loaded: Loaded, sampling: Mapping[str, Any], system: str | None, think: bool | None
) -> Session:
    """A conversation at its beginning.

    Args:
        sampling: what to change of the sampling that the file recommends.

    Raises:
        UsageError: an unknown word in it.
        EngineError: a number out of its range, or the file's template is not valid.
    """
    recommended = recommended_sampling(loaded.model)
    if unknown := sampling.keys() - asdict(recommended).keys():
        known = ", ".join(asdict(recommended))
        raise UsageError(f"sampling has no {min(unknown)!r:.40}, but {known}")
    chosen = replace(recommended, **sampling)
    return Session(loaded, Chat(loaded.context, chosen, system, think))
