"""What a context holds of the texts it read: forgotten, shifted, kept in memory or in a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemcut.engine import ContextOptions
from gemcut.errors import EngineError
from gemcut.llama import session
from gemcut.llama.library import log
from gemcut.llama.model import Model
from gemcut.llama.owner import Owner

_PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: of caches that cannot go back


@dataclass(frozen=True)
class Checkpoint:
    """What cannot be gone back to otherwise: a sequence's windows and states at position `held`."""

    held: int
    state: NDArray[np.uint8]


class Sequences(Owner):
    """The cache of a context. `Context` is one, and computes besides."""

    model: Model
    options: ContextOptions
    n_ctx_seq: int  # tokens that one sequence may hold
    _c: Any
    _memory: int  # llama.cpp's pointer to the caches
    _shifted = False  # keys are turned to their new positions by the next decode

    def held(self, seq: int = 0) -> int:
        """Tokens that a sequence's cache has read: the position its next token gets."""
        self._check_seq(seq)
        return int(self._c.llama_memory_seq_pos_max(self._cache, seq)) + 1

    def forget(self, seq: int = -1, start: int = 0) -> int:
        """Drop what a sequence (-1: all) holds from position `start` on; how much it still holds.

        That is `start`, or less: a sliding window keeps only the latest tokens, and a recurrent
        state cannot go back, so where the rest could not be continued everything is dropped.
        """
        if seq == -1 and start > 0:
            return min(self.forget(each, start) for each in range(self.options.n_seq))
        if seq != -1:
            start = min(max(start, 0), self.held(seq))
            removes = self._c.llama_memory_seq_rm
            if start > 0 and self.reaches(seq, start) and removes(self._cache, seq, start, -1):
                return start
        self._drop(seq)
        return 0

    def reaches(self, seq: int, start: int) -> bool:
        """Whether a sequence can go on at position `start`: `forget` would leave it there."""
        held = self.held(seq)
        if start == 0 or not 0 <= start < held:
            return start in (0, held)
        # A cache of the whole context begins at 0, a recurrent state has its last position alone.
        # A token at `start` attends to the n_swa - 1 before it.
        return self._oldest(seq) <= max(0, start - max(self.model.n_swa - 1, 1))

    def shift(self, seq: int, keep: int, drop: int) -> int:
        """Forget `drop` tokens after the first `keep` and close the gap; how much is still held.

        What follows was read with the dropped tokens in sight, and still knows of them: answers
        are not those of a context that never held them.

        Raises:
            EngineError: the model or its cache cannot do it: a recurrent state cannot forget in
                the middle, positions of several numbers cannot move, and a window needs `swa_full`.
        """
        c, cache, held = self._c, self._cache, self.held(seq)
        if keep < 0 or drop < 1 or keep + drop > held:
            raise EngineError(f"cannot drop {drop} tokens after {keep}: {held} are held")
        if self.model.recurrent:
            raise EngineError("a recurrent state cannot forget what is in its middle: read anew")
        if not c.llama_memory_can_shift(cache):
            raise EngineError("this model's cache cannot shift: read anew, or use swa_full")
        window = max(0, held - drop - max(self.model.n_swa - 1, 1))
        if self._oldest(seq) > (window if window < keep else window + drop):
            raise EngineError("the window has passed what is to be kept: read anew")
        c.llama_memory_seq_rm(cache, seq, keep, keep + drop)
        c.llama_memory_seq_add(cache, seq, keep + drop, held, -drop)
        self._shifted = True
        return self.held(seq)

    def share(self, seq: int, others: Sequence[int]) -> None:
        """Let other sequences go on from what this one holds; what they held is dropped.

        The cells are shared, not copied, so that a common beginning is computed and kept once.

        Raises:
            EngineError: no such sequence, or the sequences' cells are apart: see `kv_unified`.
        """
        for each in (seq, *others):
            self._check_seq(each)
        if not self.options.kv_unified:
            raise EngineError("sequences share cells in a unified cache alone: use kv_unified")
        for each in others:
            if each != seq:
                self._drop(each)
                self._c.llama_memory_seq_cp(self._cache, seq, each, -1, -1)

    # --- checkpoints ---

    @property
    def goes_back(self) -> bool:
        """Whether `forget` reaches every position; otherwise checkpoints help."""
        return not (self.model.recurrent or self._windowed)

    def checkpoint(self, seq: int) -> Checkpoint:
        """Remember the present position, to `rewind` to it: n_swa cells of the windows in memory.

        Raises EngineError if llama.cpp cannot copy them.
        """
        c, held = self._c, self.held(seq)
        self._check_settled()
        size = c.llama_state_seq_get_size_ext(self.handle, seq, _PARTIAL)
        state = np.empty(size, np.uint8)
        arguments = _bytes(c, state), size, seq, _PARTIAL
        if c.llama_state_seq_get_data_ext(self.handle, *arguments) != size:
            raise EngineError(f"llama.cpp cannot copy the state of sequence {seq}")
        return Checkpoint(held, state)

    def rewind(self, seq: int, checkpoint: Checkpoint) -> int:
        """Go back to a checkpoint of this sequence; how much is held then, 0 where it failed.

        The sequence must still hold the tokens that it held at the checkpoint.
        """
        c, state = self._c, checkpoint.state
        if checkpoint.held > self.held(seq):
            raise EngineError(f"sequence {seq} holds fewer tokens than at the checkpoint")
        arguments = _bytes(c, state), state.size, seq, _PARTIAL
        done = c.llama_state_seq_set_data_ext(self.handle, *arguments)
        removed = c.llama_memory_seq_rm(self._cache, seq, checkpoint.held, -1)
        if done and removed and self.held(seq) == checkpoint.held:
            return checkpoint.held
        return self.forget(seq)

    # --- files ---

    def save(self, path: Path, seq: int, tokens: Sequence[int]) -> None:
        """Write what a sequence holds into a file, whole or not at all.

        Args:
            tokens: those that the sequence holds, for `restore` to tell.

        Raises:
            EngineError: the sequence does not hold so many tokens.
            OutputError: the file, or this user's secret, cannot be written.
        """
        held = self.held(seq)
        self._check_settled()
        if len(tokens) != held:
            raise EngineError(f"{len(tokens)} tokens to save, sequence {seq} holds {held}")
        session.write(self, path, seq, tokens)

    def restore(self, path: Path, seq: int) -> list[int]:
        """Let a sequence hold what a file of `save` has; its tokens. What it held is dropped.

        llama.cpp trusts such files, so only those are shown to it that this user wrote on this
        machine, for the same model, kind of cache and version of llama.cpp, and that are intact.

        Raises:
            EngineError: it is none of these, or longer than the context. Reading the text anew
                is all that is lost.
        """
        self.forget(seq)
        mark = log.count
        tokens = session.read(self, path, seq)
        if tokens is None or len(tokens) != self.held(seq):
            self.forget(seq)
            raise EngineError(f"{path}: llama.cpp cannot restore it: {log.reason(mark)}")
        return tokens

    # --- within ---

    def _drop(self, seq: int) -> None:
        """Empty a sequence (-1: all); of one alone, the next text gets the cells of a first one."""
        if seq == -1 or self.options.n_seq == 1:
            self._c.llama_memory_clear(self._cache, False)
        else:
            self._c.llama_memory_seq_rm(self._cache, seq, 0, -1)

    @property
    def _cache(self) -> int:
        return self._memory if self.handle else 0  # asking for the handle of a closed one raises

    @property
    def _windowed(self) -> bool:
        return self.model.n_swa > 0 and not self.options.swa_full

    def _oldest(self, seq: int) -> int:
        """The first position that all of a sequence's caches have."""
        return int(self._c.llama_memory_seq_pos_min(self._cache, seq))

    def _check_seq(self, seq: int) -> None:
        if not 0 <= seq < self.options.n_seq:
            raise EngineError(f"sequence {seq} asked for, n_seq is {self.options.n_seq}")

    def _check_settled(self) -> None:
        if self._shifted:
            raise EngineError("the cache was shifted and not yet used: decode a token first")


def _bytes(c: Any, array: NDArray[np.uint8]) -> Any:
    return array.ctypes.data_as(c.llama_state_seq_get_data_ext.argtypes[1])
