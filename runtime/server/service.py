"""What the routes share: the model, the answers that are on their way, the counts."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from gemcut.llama import Context, Model
from gemcut.runtime.batching.scheduler import Scheduler
from gemcut.runtime.chat.chat import recommended_sampling
from gemcut.runtime.chat.timing import Timing
from gemcut.runtime.language.prompt import open_template, written
from gemcut.runtime.server.answers import Answers
from gemcut.runtime.server.asking import Asked, Voice
from gemcut.runtime.server.failures import Failure
from gemcut.runtime.server.metrics import Metrics
from gemcut.runtime.server.vectors import Vectors


def conversation_limit(context: Context) -> int:
    """Tokens that one conversation may hold, where several share the context.

    One may take all of it, but not more than the model was made for: unless that is what each one's
    share would be.
    """
    share = context.n_ctx // context.options.n_seq
    return min(context.n_ctx_seq, max(context.model.n_ctx_train, share))


class Service:
    """A model that answers: with texts, or with vectors.

    Args:
        name: of the model, as clients see it.
        n_ctx: tokens of one conversation, or of one text.
        scheduler: what writes texts; it stays the caller's.
        vectors: what makes vectors; it stays the caller's.
        timeout: seconds that an answer may take, the time it waits included.
        think: whether thoughts are asked for, unless a request says; None: as the template likes.
        record: told how long each answer took that had the machine to itself.

    Attributes:
        draining: no more requests are wanted.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        n_ctx: int,
        scheduler: Scheduler | None = None,
        vectors: Vectors | None = None,
        timeout: float = 3600,
        think: bool | None = None,
        record: Callable[[Timing], None] | None = None,
    ) -> None:
        self.name, self.model, self.timeout = name, model, timeout
        self._n_ctx, self._scheduler, self._vectors = n_ctx, scheduler, vectors
        self._record = record
        template, sampling = open_template(model), recommended_sampling(model)
        self._voice = Voice(model, template, sampling, n_ctx, think)
        self.metrics, self.draining, self._created = Metrics(), False, int(time.time())
        self._live: set[Answers] = set()

    @property
    def voice(self) -> Voice:
        """What requests may leave unsaid. Raises Failure (501) if the model does not write."""
        self._writer()
        return self._voice

    @property
    def vectors(self) -> Vectors:
        """What makes vectors. Raises Failure (501) if the model is not made for them."""
        if self._vectors is None:
            message = "the model is not made for embeddings: its file names no pooling"
            raise Failure(501, message, "not_supported")
        return self._vectors

    async def start(self, asked: Sequence[Asked]) -> Answers:
        """Begin to answer a request; `finish` it in any case.

        Raises:
            Failure: 503, there are too many already, or the end is near; 501, as `voice`.
            UsageError, EngineError: it cannot be computed.
        """
        if self.draining:
            raise Failure(503, "the server is shutting down", retry_after=30)
        scheduler = self._writer()
        answers = Answers(self.model, asked, self.metrics, self.timeout, self._record)
        self._live.add(answers)
        try:
            await answers.begin(scheduler)
        except BaseException:
            self.finish(answers)
            raise
        return answers

    def finish(self, answers: Answers) -> None:
        """Forget a request; what is still computed for it is given up."""
        answers.close()
        self._live.discard(answers)

    def _writer(self) -> Scheduler:
        if self._scheduler is None:
            message = "the model makes embeddings and writes no text: ask /v1/embeddings"
            raise Failure(501, message, "not_supported")
        return self._scheduler

    def drain(self) -> None:
        """Take no more requests."""
        self.draining = True

    def abort(self) -> None:
        """End the answers that are on their way."""
        for answers in [*self._live]:
            answers.abort(Failure(503, "the server is shutting down"))

    def exposition(self) -> str:
        """The metrics, as Prometheus reads them."""
        return self.metrics.text(self._scheduler.stats() if self._scheduler else None)

    def tokenizer(self) -> dict[str, Any]:
        """What the vocabulary's special tokens are called, as /tokenizer_info tells."""
        model = self.model
        return {
            "bos_token": written(model, model.bos) or None,
            "eos_token": written(model, model.eos) or None,
            "add_bos_token": model.add_bos,
            "chat_template": model.chat_template,
        }

    def description(self) -> dict[str, Any]:
        """The model, as /v1/models lists it."""
        model = self.model
        meta = {
            "description": model.description,
            "n_ctx": self._n_ctx,
            "n_ctx_train": model.n_ctx_train,
            "n_vocab": model.n_vocab,
            "n_embd": model.n_embd,
            "size": model.size_bytes,
        }
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "gemcut",
            "meta": meta,
        }
