"""A context: tokens in, logits out, with the cache of what was read before."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gemcut import ggml
from gemcut.cores import default_threads
from gemcut.engine import ContextOptions, read_memory
from gemcut.errors import EngineError, PlanError
from gemcut.llama.batch import Batch, Outputs, Span, checked_tokens, spans_of
from gemcut.llama.library import log, require
from gemcut.llama.model import Model
from gemcut.llama.refusal import refusal
from gemcut.llama.sequences import Sequences
from gemcut.llama.tensor import check_layout
from gemcut.llama.watch import OnTensor, Wants, Watch

_REFUSALS = {
    1: "no room in the cache: forget something, or use a larger n_ctx",
    2: "it was interrupted",
    -1: "it refused the batch",
    -2: "it ran out of memory for the computation",
    -3: "the computation failed",
}


class Context(Sequences):
    """Room to run a model in. Close it, or use it as a context manager; its model closes it too.

    Args:
        on_tensor: called with the name and the tensor for every result computed, in order. What it
            raises ends the decode and is raised from there; the cache is then empty. If it returns
            False, the rest of a graph is left out as far as llama.cpp computes it in one piece:
            logits, and what later layers keep, are then none.
        wants: asked before a result is computed, so that on_tensor need not see every one; an
            unwanted result costs little, a wanted one ends the overlap of computations.

    Raises:
        OutOfMemory: there is no memory for its caches or for computing.
        EngineError: llama.cpp cannot make it: options that exclude each other.
    """

    def __init__(
        self,
        model: Model,
        options: ContextOptions | None = None,
        on_tensor: OnTensor | None = None,
        wants: Wants | None = None,
    ) -> None:
        self._c = c = require()
        self.model, self.options = model, options or ContextOptions()
        if model.options.vocab_only:
            raise EngineError("a model loaded with vocab_only cannot run: load it whole")
        self._watch = Watch(on_tensor, wants) if on_tensor else None
        self._callback = c.ggml_backend_sched_eval_callback(self._watch) if on_tensor else None
        params, mark = self._params(), log.count
        handle = c.llama_init_from_model(model.handle, params)
        if not handle:
            raise refusal("llama.cpp cannot make a context", mark)
        super().__init__("context", handle, c.llama_free)
        model.dependents.add(self)
        self.n_vocab = model.n_vocab
        self.logits = np.empty((0, self.n_vocab), np.float32)  # what the last decode returned
        self._memory = int(c.llama_get_memory(handle) or 0)
        # Where llama.cpp's logits were seen last, and how many rows; the array over them.
        self._seen: tuple[tuple[int, int], NDArray[np.float32]] = ((0, 0), self.logits)
        if not self._memory:
            self.close()
            raise EngineError("the model has no cache: it does not generate text")
        self.n_ctx = int(c.llama_n_ctx(handle))
        self.n_ctx_seq = int(c.llama_n_ctx_seq(handle))
        self.n_batch = int(c.llama_n_batch(handle))
        self.n_outputs_max = self.options.n_outputs or self.n_batch
        self.memory = read_memory(log.since(mark), 4 * self.n_outputs_max * self.n_vocab)
        self._batch = Batch(c, self.n_batch)

    def _params(self) -> Any:
        c, options = self._c, self.options
        n_batch = options.n_batch or options.n_ctx
        if options.n_outputs is not None and options.n_outputs < options.n_seq:
            raise EngineError(
                f"n_outputs is {options.n_outputs}, wanted {options.n_seq}: one for each sequence"
            )
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = options.n_ctx, n_batch, options.n_ubatch
        params.n_seq_max, params.n_outputs_max = options.n_seq, options.n_outputs or 0
        params.n_threads = params.n_threads_batch = options.threads or default_threads()
        flash = options.flash_attention
        params.flash_attn_type = -1 if flash is None else int(flash)
        params.type_k, params.type_v = _type(options.type_k), _type(options.type_v)
        params.offload_kqv, params.op_offload = options.offload_kqv, options.op_offload
        params.swa_full, params.kv_unified = options.swa_full, options.kv_unified
        if self._callback:
            check_layout()
            params.cb_eval = self._callback
        return params

    def close(self) -> None:
        """Free the context. Logits it returned must not be touched again."""
        self.logits = np.empty((0, self.n_vocab), np.float32)
        self._seen = (0, 0), self.logits
        super().close()

    def decode(
        self, tokens: ArrayLike, start: int = 0, seq: int = 0, outputs: Outputs = "all"
    ) -> NDArray[np.float32]:
        """Read tokens from position `start` on; what the cache held from there is dropped.

        Args:
            tokens: int32 [n] for sequence `seq`, or [n_seqs, n] for the sequences seq, seq + 1 ...
            outputs: which tokens get logits: all, the last of each sequence, none, or a boolean
                array in the shape of `tokens`.

        Returns and raises as `run` does.
        """
        return self.run(spans_of(tokens, start, seq, outputs))

    def step(self, token: int, start: int, seq: int = 0) -> NDArray[np.float32]:
        """Read one token on: `decode` with little around it, for answers token by token.

        Returns and raises as `run` does.
        """
        known = 0 <= token < self.n_vocab and 0 <= start < self.n_ctx_seq
        if not known or self.model.options.no_alloc or self.held(seq) != start:
            return self.decode([token], start, seq, "last")
        self._batch.take(token, start, seq)
        self.logits = self.logits[:0]
        self._compute()
        self.logits = self._rows(1)
        return self.logits

    def run(self, spans: Sequence[Span]) -> NDArray[np.float32]:
        """Let any mix of sequences read on in one batch, each at most once.

        What a sequence's cache held from its span's start on is dropped.

        Returns:
            Logits float32 [n_outputs, n_vocab], in the order of the spans and their tokens. This
            is llama.cpp's own memory: valid until the next batch or close; copy what must live
            longer.

        Raises:
            EngineError: tokens not in the vocabulary, more of them than n_batch, more outputs than
                n_outputs, past the end of the context, or a start the cache cannot continue from.
        """
        tokens = [checked_tokens(span.tokens, self.n_vocab) for span in spans]
        self._check_fit(spans, tokens)
        count = self._batch.fill(spans, tokens)
        if count > self.n_outputs_max:
            raise _too_many(count, self.n_outputs_max, "outputs, n_outputs")
        self._continue(spans)
        self.logits = self.logits[:0]
        self._compute()
        if count:
            self.logits = self._rows(count)
        return self.logits

    def _compute(self) -> None:
        mark = log.count
        if self._watch is None:
            code = self._c.llama_decode(self.handle, self._batch.struct)
        else:
            with self._watch.guarded():
                code = self._c.llama_decode(self.handle, self._batch.struct)
            if self._watch.failure:
                self.forget()
                raise self._watch.take_failure()
        if code:
            why = _REFUSALS.get(code, f"code {code}")
            raise EngineError(f"llama.cpp did not decode: {why} ({log.reason(mark)})")
        self._shifted = False

    def _rows(self, count: int) -> NDArray[np.float32]:
        """llama.cpp's buffer of logits; it moves seldom, and making an array of it takes long."""
        pointer = self._c.llama_get_logits(self.handle)
        where = ctypes.addressof(pointer.contents), count
        if where != self._seen[0]:
            self._seen = where, np.ctypeslib.as_array(pointer, (count, self.n_vocab))
        return self._seen[1]

    def _continue(self, spans: Sequence[Span]) -> None:
        """Drop what the caches hold beyond the starts of the spans."""
        held = [self.held(span.seq) for span in spans]
        for span, there in zip(spans, held, strict=True):
            if span.start > there:
                raise EngineError(
                    f"sequence {span.seq} holds {there} tokens: cannot go on at {span.start}"
                )
        for span, there in zip(spans, held, strict=True):
            if span.start < there and self.forget(span.seq, span.start) < span.start:
                raise EngineError(
                    f"the cache of sequence {span.seq} cannot go back to token {span.start}: its "
                    "window has passed; decode from 0, or use swa_full"
                )

    def _check_fit(self, spans: Sequence[Span], tokens: Sequence[NDArray[np.int32]]) -> None:
        if self.model.options.no_alloc:
            raise EngineError("a model loaded with no_alloc cannot decode: it has no weights")
        total = 0
        for span, row in zip(spans, tokens, strict=True):
            self._check_seq(span.seq)
            if span.start < 0:
                raise EngineError(f"start is {span.start}, wanted 0 or more")
            if (end := span.start + row.size) > self.n_ctx_seq:
                raise _too_many(end, self.n_ctx_seq, "tokens in a sequence, its context")
            total += row.size
        if not total:
            raise EngineError("no sequence has tokens to read: a batch needs 1 at least")
        if total > self.n_batch:
            raise _too_many(total, self.n_batch, "tokens at once, n_batch")
        if len(spans) > 1 and len({span.seq for span in spans}) < len(spans):
            raise EngineError("a sequence reads twice in one batch: join its tokens")


def _too_many(found: int, limit: int, what: str) -> EngineError:
    return EngineError(f"{found} {what} is {limit}: ask for less or make it larger")


def _type(name: str) -> int:
    try:  # ggml's own number: the bindings do not know BF16
        return ggml.type_named(name).id
    except PlanError as error:
        raise EngineError(
            f"there is no cache type {name!r}: f16, bf16, f32, q8_0, q4_0 and others"
        ) from error
