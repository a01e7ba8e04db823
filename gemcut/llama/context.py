"""A context: tokens in, logits out, with the cache of what was read before."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gemcut.engine import ContextOptions, default_threads, read_memory
from gemcut.errors import EngineError
from gemcut.llama.batch import Batch, Outputs, token_rows, wanted_outputs
from gemcut.llama.library import log, require
from gemcut.llama.model import Model
from gemcut.llama.owner import Owner
from gemcut.llama.tensor import Tensor, check_layout

OnTensor = Callable[[str, Tensor], None]
Wants = Callable[[str, Tensor], bool]

_REFUSALS = {
    1: "no room in the cache: forget something, or use a larger n_ctx",
    2: "it was interrupted",
    -1: "it refused the batch",
    -2: "it ran out of memory for the computation",
    -3: "the computation failed",
}


class Context(Owner):
    """Room to run a model in. Close it, or use it as a context manager; its model closes it too.

    Args:
        on_tensor: called with the name and the tensor for every result computed, in order. What it
            raises ends the decode and is raised from there; the cache is then empty.
        wants: asked before a result is computed, so that on_tensor need not see every one; an
            unwanted result costs little, a wanted one ends the overlap of computations.

    Raises:
        EngineError: llama.cpp cannot make it: options that exclude each other, or no memory.
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
        self._watch = _Watch(on_tensor, wants) if on_tensor else None
        self._callback = c.ggml_backend_sched_eval_callback(self._watch) if on_tensor else None
        params, mark = self._params(), log.count
        handle = c.llama_init_from_model(model.handle, params)
        if not handle:
            raise EngineError(f"llama.cpp cannot make a context: {log.reason(mark)}")
        super().__init__("context", handle, c.llama_free)
        model.dependents.add(self)
        self.n_vocab = model.n_vocab
        self.logits = np.empty((0, self.n_vocab), np.float32)  # what the last decode returned
        if not self._cache:
            self.close()
            raise EngineError("the model has no cache: it does not generate text")
        self.n_ctx = int(c.llama_n_ctx(handle))
        self.n_ctx_seq = int(c.llama_n_ctx_seq(handle))  # tokens that one sequence may hold
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
        params.type_k, params.type_v = _type(c, options.type_k), _type(c, options.type_v)
        params.offload_kqv, params.op_offload = options.offload_kqv, options.op_offload
        params.swa_full, params.kv_unified = options.swa_full, options.kv_unified
        if self._callback:
            check_layout()
            params.cb_eval = self._callback
        return params

    def close(self) -> None:
        """Free the context. Logits it returned must not be touched again."""
        self.logits = np.empty((0, self.n_vocab), np.float32)
        super().close()

    @property
    def _cache(self) -> int:
        return int(self._c.llama_get_memory(self.handle) or 0)

    def held(self, seq: int = 0) -> int:
        """Tokens that a sequence's cache has read: the position its next token gets."""
        self._check_seq(seq, 1)
        return int(self._c.llama_memory_seq_pos_max(self._cache, seq)) + 1

    def forget(self, seq: int = -1, start: int = 0) -> int:
        """Drop what a sequence (-1: all) holds from position `start` on; how much it still holds.

        That is `start`, or less: a sliding window keeps only the latest tokens, and a recurrent
        state cannot go back, so where the rest could not be continued everything is dropped.
        """
        c, cache = self._c, self._cache
        if seq == -1 and start <= 0:
            c.llama_memory_clear(cache, False)
            return 0
        if seq == -1:
            return min(self.forget(each, start) for each in range(self.options.n_seq))
        start = min(max(start, 0), self.held(seq))
        removed = c.llama_memory_seq_rm(cache, seq, start, -1)
        if removed and self.held(seq) == start and self._reaches_back(seq, start):
            return start
        c.llama_memory_seq_rm(cache, seq, 0, -1)
        return 0

    def _reaches_back(self, seq: int, start: int) -> bool:
        """Whether the cache has everything that a token at position `start` attends to."""
        # A full cache starts at 0; a recurrent one holds the last position alone.
        window = 0 if self.options.swa_full else self.model.n_swa
        oldest = self._c.llama_memory_seq_pos_min(self._cache, seq)
        return bool(oldest <= max(0, start - max(window, 1)))

    def decode(
        self, tokens: ArrayLike, start: int = 0, seq: int = 0, outputs: Outputs = "all"
    ) -> NDArray[np.float32]:
        """Read tokens from position `start` on; what the cache held from there is dropped.

        Args:
            tokens: int32 [n] for sequence `seq`, or [n_seqs, n] for the sequences seq, seq + 1 ...
            outputs: which tokens get logits: all, the last of each sequence, none, or a boolean
                array in the shape of `tokens`.

        Returns:
            Logits float32 [n_outputs, n_vocab], in the order of the tokens. This is llama.cpp's
            own memory: valid until the next decode or close; copy what must live longer.

        Raises:
            EngineError: tokens not in the vocabulary, more of them than n_batch, more outputs than
                n_outputs, past the end of the context, or a start the cache cannot continue from.
        """
        rows = token_rows(tokens, self.n_vocab)
        wanted = wanted_outputs(rows, outputs)
        self._check_fit(rows, wanted, start, seq)
        for each in range(seq, seq + len(rows)):
            self._continue(each, start)
        self.logits = self.logits[:0]
        self._batch.fill(rows, wanted, start, seq)
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
        if count := int(wanted.sum()):
            rows_of_logits = self._c.llama_get_logits(self.handle)
            self.logits = np.ctypeslib.as_array(rows_of_logits, (count, self.n_vocab))
        return self.logits

    def _continue(self, seq: int, start: int) -> None:
        held = self.held(seq)
        if start > held:
            raise EngineError(f"sequence {seq} holds {held} tokens: cannot go on at {start}")
        if start < held and self.forget(seq, start) < start:
            raise EngineError(
                f"the cache of sequence {seq} cannot go back to token {start}: its window has "
                "passed; decode from 0, or use swa_full"
            )

    def _check_fit(
        self, rows: NDArray[np.int32], wanted: NDArray[np.bool_], start: int, seq: int
    ) -> None:
        self._check_seq(seq, len(rows))
        if self.model.options.no_alloc:
            raise EngineError("a model loaded with no_alloc cannot decode: it has no weights")
        limits = (
            (rows.size, self.n_batch, "tokens at once, n_batch"),
            (int(wanted.sum()), self.n_outputs_max, "outputs, n_outputs"),
            (start + rows.shape[1], self.n_ctx_seq, "tokens in a sequence, its context"),
        )
        for found, limit, what in limits:
            if found > limit:
                raise EngineError(f"{found} {what} is {limit}: ask for less or make it larger")
        if start < 0:
            raise EngineError(f"start is {start}, wanted 0 or more")

    def _check_seq(self, seq: int, count: int) -> None:
        if not 0 <= seq <= self.options.n_seq - count:
            raise EngineError(
                f"sequences {seq} to {seq + count - 1} asked for, n_seq is {self.options.n_seq}"
            )


class _Watch:
    """The evaluation callback: asked "do you want it?" before, then shown the result."""

    def __init__(self, on_tensor: OnTensor, wants: Wants | None) -> None:
        self._on_tensor, self._wants = on_tensor, wants
        self.failure: BaseException | None = None

    def __call__(self, address: int, ask: bool, _: object) -> bool:
        if self.failure:
            return False
        try:
            tensor = Tensor(address)
            if ask:
                return self._wants is None or bool(self._wants(tensor.name, tensor))
            self._on_tensor(tensor.name, tensor)
        except BaseException as error:  # KeyboardInterrupt too: C cannot pass it on
            self.failure = error
        return self.failure is None

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """While C computes, also take what a signal raises where `__call__` cannot catch it.

        Python handles signals when a function is entered, before its first line; ctypes hands that
        exception to `sys.unraisablehook` and lets C go on, as if nobody had pressed Ctrl-C.
        """
        usual = sys.unraisablehook

        def take(raised: "sys.UnraisableHookArgs") -> None:
            if raised.exc_value is None or isinstance(raised.exc_value, Exception):
                usual(raised)
            else:
                self.failure = raised.exc_value

        try:
            sys.unraisablehook = take
            yield
        finally:
            sys.unraisablehook = usual

    def take_failure(self) -> BaseException:
        """The exception that ended the decode, forgotten here."""
        failure, self.failure = self.failure, None
        return failure or EngineError("the evaluation callback did not fail")


def _type(c: Any, name: str) -> int:
    number = getattr(c, f"GGML_TYPE_{name.upper()}", None)
    if number is None:
        raise EngineError(f"there is no cache type {name!r}: f16, bf16, f32, q8_0, q4_0 and others")
    return int(number)
