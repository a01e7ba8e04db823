"""Files with types per expert, loaded by llama.cpp as it is.

llama.cpp reads a stock view of the file (`stock_view`) and puts the stacks of experts into memory
of ours, which takes the experts' bytes from the file and computes with them.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from gemcut.engine import ModelOptions
from gemcut.errors import EngineError
from gemcut.gguf_experts import VERSION_KEY, Stack
from gemcut.gguf_file import GGUFFile, state_of
from gemcut.gguf_parts import GGUFParts
from gemcut.llama.experts_library import library
from gemcut.llama.owner import Owner
from gemcut.llama.stock_view import patterns, places, stock_view

_HEAD = 1 << 16  # bytes of a file that are looked at for the mark: it is among the first keys
ADVICE = "`gemcut convert FILE -o STOCK.gguf` makes a stock file of it"


def is_marked(path: Path) -> bool:
    """Whether a file says that it has types per expert.

    Raises:
        EngineError: it cannot be read, or is not a GGUF.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from error
    if (magic := head[:4]) != b"GGUF":
        raise EngineError(f"{path}: starts with {magic!r}, wanted b'GGUF': not a GGUF file")
    return VERSION_KEY.encode() in head


class Experts(Owner):
    """The experts of one file, and the memory that llama.cpp loads them into.

    Close it after the model: what computes with the experts knows them by it.
    """

    def __init__(self, path: Path, options: ModelOptions, parts: GGUFParts | None = None) -> None:
        """Read the file's header, and check whether all of it can be computed with.

        Args:
            parts: the same file, where it is open already: its header is not read again.

        Raises:
            GGUFError: it is damaged, or an expert is missing.
            EngineError: a part is missing, the library is not built, or there is a type that it
                does not compute with.
        """
        self._path, self._library = path, library()
        self._files = ExitStack()  # open until the model is loaded
        super().__init__("table of experts", 0, self._library.experts_free)
        try:
            with ExitStack() as own:
                parts = parts or own.enter_context(GGUFParts(path))
                self._handle = self._table(parts, options)
                self._places, self._view = places(parts), stock_view(parts)
                self._patterns = patterns(parts.stacks, parts.tensors)
                for stack in parts.stacks.values():
                    self._add(stack)
                # What llama.cpp does not see: the experts' bytes beyond those it takes them for.
                real = sum(stack.nbytes for stack in parts.stacks.values())
                self.unseen = real - self._view.hollow
        except BaseException:
            self.close()
            raise

    @property
    def overrides(self) -> list[tuple[str, int]]:
        """Regular expressions of the stacks' names, and the memory that takes these."""
        memory = self._library.experts_memory(self.handle)
        return [(pattern, memory) for pattern in self._patterns]

    def load(self, c: Any, params: Any) -> int:
        """The model that llama.cpp makes of the view with these parameters; 0: it refused. Once."""
        view, library = self._view, self._library
        pieces = view.pieces.copy()
        pieces[:, 2] = self._descriptors[pieces[:, 2]]
        file = library.view_open(
            view.header, len(view.header), pieces.ctypes.data, len(pieces), view.size
        )
        if not file:
            raise EngineError(f"{self._path}: no memory to show it to llama.cpp")
        try:
            return int(c.llama_model_load_from_file_ptr(file, params) or 0)
        finally:
            library.view_close(file)
            self._files.close()
            del self._view, self._places  # as large as a vocabulary

    @property
    def failure(self) -> EngineError | None:
        """What went wrong with the experts' bytes, which llama.cpp knows nothing of."""
        what = self._library.experts_error(self.handle).decode(errors="replace")
        return EngineError(f"{self._path}: {what}") if what else None

    def close(self) -> None:
        """Free the memory's table; the memory itself went with the model."""
        self._files.close()
        super().close()

    def _table(self, parts: GGUFParts, options: ModelOptions) -> int:
        if parts.missing:
            raise EngineError(f"{self._path}: {parts.missing} of {parts.count} parts are missing")
        self._descriptors = np.array([self._open(file) for file in parts.files], np.int32)
        files, count = self._descriptors.ctypes.data, self._descriptors.size
        validate, repack = options.check_tensors, options.repack
        table = self._library.experts_new(files, count, validate, repack)
        if not table:
            raise EngineError(f"{self._path}: no memory for the table of its experts")
        return int(table)

    def _open(self, part: GGUFFile) -> int:
        try:
            file = os.open(part.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:  # it was there when its header was read
            raise EngineError(f"{part.path}: cannot be read: {error.strerror}") from error
        self._files.callback(os.close, file)
        if state_of(file) != part.state:
            raise EngineError(f"{part.path}: was changed while it was opened: try again")
        return file

    def _add(self, stack: Stack) -> None:
        """Tell the table where a stack's experts are."""
        places = [self._places[info.name] for info in stack.experts]
        _, rows, columns = stack.shape
        types = np.array([kind.id for kind in stack.types], np.int32)
        files = np.array([number for number, _ in places], np.int32)
        offsets = np.array([offset for _, offset in places], np.uint64)
        arrays = (array.ctypes.data for array in (types, files, offsets))
        add, name = self._library.experts_add, stack.name.encode()
        if not add(self.handle, name, rows, columns, types.size, *arrays):
            raise EngineError(f"{self.failure}: {ADVICE}")
