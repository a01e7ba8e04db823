"""POST /v1/embeddings: texts as vectors, one after the other in a thread of their own."""

import asyncio
import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemcut.closing import Closing
from gemcut.llama import Model
from gemcut.llama.embedder import Embedder
from gemcut.runtime.server.asking import check_tokens
from gemcut.runtime.server.failures import Failure
from gemcut.runtime.server.schemas import EmbeddingRequest

_MOST_WAITING = 64  # requests


class Vectors(Closing):
    """Answers requests for embeddings. Close it before the embedder."""

    def __init__(self, model: Model, embedder: Embedder) -> None:
        self._model, self._embedder, self._waiting = model, embedder, 0
        self._thread = ThreadPoolExecutor(1, "embeddings")  # the embedder is for one thread

    def close(self) -> None:
        """Wait for the text that is being read, and read no other."""
        self._thread.shutdown(cancel_futures=True)

    async def answer(self, body: EmbeddingRequest, name: str) -> dict[str, Any]:
        """The vectors of all texts, each of length 1.

        Raises:
            Failure: 400, for a text that is too long; 503, if too many requests wait.
        """
        if body.dimensions not in (None, self._embedder.n_embd):
            message = f"dimensions: the model's vectors have {self._embedder.n_embd}"
            raise Failure(400, message, param="dimensions")
        if self._waiting >= _MOST_WAITING:
            raise Failure(503, f"{self._waiting} requests wait already", "queue_full", None, 5)
        self._waiting += 1
        try:
            return await self._answer(body, name)
        finally:
            self._waiting -= 1

    async def _answer(self, body: EmbeddingRequest, name: str) -> dict[str, Any]:
        loop, data, total = asyncio.get_running_loop(), [], 0
        for index, given in enumerate(body.inputs()):
            tokens, vector = await loop.run_in_executor(self._thread, self._embed, given)
            total += tokens
            shown = _encoded(vector) if body.encoding_format == "base64" else vector.tolist()
            data.append({"object": "embedding", "index": index, "embedding": shown})
        usage = {"prompt_tokens": total, "total_tokens": total}
        return {"object": "list", "data": data, "model": name, "usage": usage}

    def _embed(self, given: str | Sequence[int]) -> tuple[int, NDArray[np.float32]]:
        """How many tokens a text has, and its vector."""
        model, most = self._model, self._embedder.n_ctx
        tokens = model.tokenize(given).tolist() if isinstance(given, str) else list(given)
        check_tokens(model, tokens, "input")
        if not 0 < len(tokens) <= most:
            message = f"input: a text of {len(tokens)} tokens, wanted 1 to {most}"
            raise Failure(400, message, "context_length_exceeded", "input")
        return len(tokens), self._embedder.embed(tokens)


def _encoded(vector: NDArray[np.float32]) -> str:
    """Little-endian floats, as OpenAI's clients ask for them."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
