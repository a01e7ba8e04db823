"""Texts as vectors: a context that keeps nothing from one text to the next."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gemcut.cores import default_threads
from gemcut.errors import EngineError
from gemcut.gguf_file import Value
from gemcut.llama.batch import Batch, Span, checked_tokens
from gemcut.llama.library import log, require
from gemcut.llama.model import Model
from gemcut.llama.owner import Owner
from gemcut.llama.refusal import refusal

_POOLINGS = (1, 2, 3)  # mean, first, last token; 0: none, 4: rank, a score of two texts
_MOST_TOKENS = 8192  # of one text, unless told otherwise: room grows with its square


def makes_vectors(metadata: Mapping[str, Value]) -> bool:
    """Whether a file's model is made for embeddings: it says how tokens' vectors are joined."""
    architecture = metadata.get("general.architecture")
    kind = metadata.get(f"{architecture.data}.pooling_type") if architecture else None
    return kind is not None and kind.data in _POOLINGS


class Embedder(Owner):
    """Room to turn texts into vectors, for one thread at a time.

    Close it, or use it as a context manager; its model closes it too.

    Args:
        n_ctx: tokens of the longest text; None: what the model was trained for, at most 8192.

    Attributes:
        n_ctx: tokens of the longest text.
        n_embd: numbers in a vector.

    Raises:
        OutOfMemory: there is no memory for it.
        EngineError: the model is not made for embeddings (`makes_vectors`).
    """

    def __init__(self, model: Model, n_ctx: int | None = None, threads: int | None = None) -> None:
        self._c = c = require()
        self.n_ctx = n_ctx or min(model.n_ctx_train or _MOST_TOKENS, _MOST_TOKENS)
        mark = log.count
        handle = c.llama_init_from_model(model.handle, self._params(threads))
        if not handle:
            raise refusal("llama.cpp cannot make a context for embeddings", mark)
        super().__init__("embedder", handle, c.llama_free)
        model.dependents.add(self)
        if int(c.llama_pooling_type(handle)) not in _POOLINGS:
            self.close()
            raise EngineError("the model is not made for embeddings: its file names no pooling")
        self.n_embd = int(c.llama_model_n_embd_out(model.handle))
        self._n_vocab = model.n_vocab
        self._batch = Batch(c, self.n_ctx)

    def _params(self, threads: int | None) -> Any:
        params = self._c.llama_context_default_params()
        # What attends to both sides has to be computed at once.
        params.n_ctx = params.n_batch = params.n_ubatch = self.n_ctx
        params.n_seq_max, params.embeddings, params.swa_full = 1, True, False
        params.n_threads = params.n_threads_batch = threads or default_threads()
        return params

    def embed(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """The vector of a text, of length 1: float32 [n_embd].

        Raises:
            EngineError: no tokens, too many of them, not of the vocabulary; or llama.cpp fails.
        """
        c, row = self._c, checked_tokens(tokens, self._n_vocab)
        if row.size > self.n_ctx:
            raise EngineError(f"the text has {row.size} tokens, wanted at most {self.n_ctx}")
        if memory := c.llama_get_memory(self.handle):
            c.llama_memory_clear(memory, False)
        self._batch.fill([Span(0, 0, row, "all")], [row])
        mark = log.count
        if code := c.llama_decode(self.handle, self._batch.struct):
            raise EngineError(f"llama.cpp did not embed: code {code} ({log.reason(mark)})")
        pointer = c.llama_get_embeddings_seq(self.handle, 0)
        if not pointer:
            raise EngineError(f"llama.cpp left no embedding: {log.reason(mark)}")
        vector: NDArray[np.float32] = np.ctypeslib.as_array(pointer, (self.n_embd,)).copy()
        length = float(np.linalg.norm(vector))
        if not 0 < length < float("inf"):
            raise EngineError("the embedding is not a vector of numbers: is the file damaged?")
        vector /= np.float32(length)
        return vector
