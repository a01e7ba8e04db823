"""A model that llama.cpp has loaded: its weights, its numbers, its vocabulary."""

import ctypes
import os
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gemcut.engine import Memory, ModelOptions, read_memory
from gemcut.errors import EngineError, TextError
from gemcut.gguf_parts import GGUFParts
from gemcut.llama.devices import add_rpc
from gemcut.llama.experts import Experts, is_marked
from gemcut.llama.library import log, require
from gemcut.llama.loadable import States, check_loadable, states_of
from gemcut.llama.owner import Owner
from gemcut.llama.params import model_params
from gemcut.llama.refusal import refusal
from gemcut.llama.report import Progress, Report


class Model(Owner):
    """A loaded GGUF file. Close it, or use it as a context manager; its contexts close with it."""

    def __init__(
        self,
        handle: int,
        options: ModelOptions,
        memory: Memory,
        path: Path | None = None,
        experts: Experts | None = None,
        states: States = (),
    ) -> None:
        self.options, self.path, self._experts = options, path, experts
        self.states = states  # of the file's parts, when they were loaded
        self.memory = memory  # the weights' bytes by buffer type, from the log
        self.dependents: weakref.WeakSet[Owner] = weakref.WeakSet()  # closed before the model
        self._c = require()
        super().__init__("model", handle, self._c.llama_model_free)

    @classmethod
    def load(
        cls,
        path: Path | str,
        options: ModelOptions | None = None,
        on_progress: Progress | None = None,
        parts: GGUFParts | None = None,
    ) -> Self:
        """Load a GGUF file; of a split one the first part.

        Args:
            on_progress: called with the fraction loaded; what it raises ends the loading.
            parts: the same file, where it is open already: its header is not read again.

        Raises:
            OutOfMemory: there is no memory for its weights.
            EngineError: not a GGUF, cut short, or of an unknown architecture, in llama.cpp's words
                where it has some.
        """
        path, options = Path(path), options or ModelOptions()
        per_expert = is_marked(path)
        check_loadable(path, parts)
        if not per_expert:
            return cls._loaded(path, options, on_progress, None)
        # Its bytes come through us, so that llama.cpp has nothing to map.
        options = replace(options, load_mode="none")
        with ExitStack() as opened:
            experts = opened.enter_context(Experts(path, options, parts))
            model = cls._loaded(path, options, on_progress, experts)
            opened.pop_all()
        return model

    @classmethod
    def _loaded(
        cls, path: Path, options: ModelOptions, progress: Progress | None, experts: Experts | None
    ) -> Self:
        c = require()
        for endpoint in options.rpc:
            add_rpc(endpoint)
        params, kept = model_params(c, options, experts.overrides if experts else ())
        report = Report(progress)
        callback = c.llama_progress_callback(report)
        params.progress_callback = callback
        mark, states = log.count, states_of(path)
        with report.interrupted():
            if experts:
                handle = experts.load(c, params)
            else:
                handle = c.llama_model_load_from_file(os.fsencode(path), params)
        del kept, callback  # llama.cpp read them until here
        failure = report.failure or (experts and experts.failure)
        if failure:
            if handle:
                c.llama_model_free(handle)
            raise failure
        if not handle:
            raise refusal(f"{path}: llama.cpp cannot load it", mark)
        return cls(handle, options, read_memory(log.since(mark)), path, experts, states)

    def close(self) -> None:
        """Free the model and every context made of it."""
        for dependent in list(self.dependents):
            dependent.close()
        super().close()
        if self._experts:
            self._experts.close()

    # --- numbers ---

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary; the length of a row of logits."""
        return int(self._c.llama_vocab_n_tokens(self.vocab))

    @property
    def n_ctx_train(self) -> int:
        """The context the model was trained for."""
        return int(self._c.llama_model_n_ctx_train(self.handle))

    @property
    def n_embd(self) -> int:
        """The width of the residual stream."""
        return int(self._c.llama_model_n_embd(self.handle))

    @property
    def n_layer(self) -> int:
        """Blocks, without the output layer."""
        return int(self._c.llama_model_n_layer(self.handle))

    @property
    def n_swa(self) -> int:
        """The sliding window of the layers that have one, in tokens; 0 without."""
        return int(self._c.llama_model_n_swa(self.handle))

    @property
    def recurrent(self) -> bool:
        """Whether some layer keeps a state for each sequence, of which there is no way back."""
        c = self._c
        return bool(c.llama_model_is_recurrent(self.handle) or c.llama_model_is_hybrid(self.handle))

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        unseen = self._experts.unseen if self._experts else 0
        return int(self._c.llama_model_size(self.handle)) + unseen

    @property
    def description(self) -> str:
        """llama.cpp's one line: architecture, size class and file type."""
        return _read(self._c.llama_model_desc, self.handle) or ""

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that turns a conversation into a prompt, if the file has one."""
        found = self._c.llama_model_chat_template(self.handle, None)
        return found.decode("utf-8", errors="replace") if found else None

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata as text, or None; arrays are not kept by llama.cpp."""
        return _read(self._c.llama_model_meta_val_str, self.handle, key.encode())

    def all_metadata(self) -> Iterator[tuple[str, str]]:
        """Keys and values of the file's metadata, but arrays, in the file's order."""
        by_index = self._c.llama_model_meta_key_by_index, self._c.llama_model_meta_val_str_by_index
        for index in range(self._c.llama_model_meta_count(self.handle)):
            key, value = (_read(getter, self.handle, index) or "" for getter in by_index)
            yield key, value

    # --- vocabulary ---

    @property
    def vocab(self) -> int:
        """llama.cpp's pointer to the vocabulary. Raises EngineError after `close`."""
        return int(self._c.llama_model_get_vocab(self.handle))

    @property
    def add_bos(self) -> bool:
        """Whether text is meant to start with the beginning-of-sequence token."""
        return bool(self._c.llama_vocab_get_add_bos(self.vocab))

    @property
    def bos(self) -> int | None:
        """The beginning-of-sequence token."""
        return _token(self._c.llama_vocab_bos(self.vocab))

    @property
    def eos(self) -> int | None:
        """The end-of-sequence token."""
        return _token(self._c.llama_vocab_eos(self.vocab))

    def tokenize(
        self, text: str, add_special: bool = True, parse_special: bool = False
    ) -> NDArray[np.int32]:
        """The tokens of a text: int32 [n].

        Args:
            add_special: add the tokens the model wants around a text, such as BOS.
            parse_special: read "<bos>" and the like as tokens instead of as characters.

        Raises:
            TextError: the text is not Unicode, or 2 GiB or longer.
            EngineError: the file has no vocabulary.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise TextError(f"the text is not valid Unicode: {error}") from error
        if len(data) >= 1 << 31:
            raise TextError(f"the text has {len(data)} bytes, wanted fewer than 2 GiB: split it")
        if self._c.llama_vocab_type(self.vocab) == self._c.LLAMA_VOCAB_TYPE_NONE:
            raise EngineError("the model has no vocabulary: it cannot read text")
        room = len(data) + 8  # nearly always enough: a token has a byte at least
        while True:
            out = np.empty(room, np.int32)
            pointer = out.ctypes.data_as(self._c.llama_token_p)
            arguments = (data, len(data), pointer, room, add_special, parse_special)
            count = self._c.llama_tokenize(self.vocab, *arguments)
            if count >= 0:
                return out[:count].copy()
            room = -count

    def least_tokens(self, text: str) -> int:
        """How many tokens a text has at least, told in no time: tokenizing takes a second for each
        few MB. 0 where words are replaced before they are looked up."""
        c = self._c
        if c.llama_vocab_type(self.vocab) not in (c.LLAMA_VOCAB_TYPE_SPM, c.LLAMA_VOCAB_TYPE_BPE):
            return 0
        return len(text) // self._longest  # a character has a byte at least

    @cached_property
    def _longest(self) -> int:
        """Bytes of the longest token, as the vocabulary spells it: what it stands for is no longer
        (a space has three bytes there, a byte up to two)."""
        text, vocab = self._c.llama_vocab_get_text, self.vocab
        return max((len(text(vocab, token)) for token in range(self.n_vocab)), default=1) or 1

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes a token stands for, often part of a character; control tokens if `special`.

        Raises:
            EngineError: no such token.
        """
        self._check_token(token)
        room = 64
        while True:
            out = ctypes.create_string_buffer(room)
            count = self._c.llama_token_to_piece(self.vocab, token, out, room, 0, special)
            if count >= 0:
                return out.raw[:count]
            room = -count

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation. Raises EngineError if there is no such token."""
        self._check_token(token)
        return bool(self._c.llama_vocab_is_eog(self.vocab, token))

    def _check_token(self, token: int) -> None:
        if not 0 <= token < self.n_vocab:
            raise EngineError(f"token {token} is not in the vocabulary of {self.n_vocab}")


def _read(getter: Any, *arguments: Any) -> str | None:
    """A text that a function of llama.cpp writes like snprintf; None if it has none."""
    room = 256
    while True:
        out = ctypes.create_string_buffer(room)
        length = getter(*arguments, out, room)
        if length < room:
            return out.raw[:length].decode("utf-8", errors="replace") if length >= 0 else None
        room = length + 1


def _token(number: int) -> int | None:
    return number if number >= 0 else None
