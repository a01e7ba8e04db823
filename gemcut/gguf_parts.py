"""A GGUF that may be split over several files, seen as one.

llama.cpp names the parts NAME-00001-of-00003.gguf; the first has the metadata, each a tensor table
of its own.
"""

import re
from collections import ChainMap
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from gemcut import ggml
from gemcut.closing import Closing
from gemcut.errors import GGUFError
from gemcut.gguf_experts import Stack, expert_count, stacks
from gemcut.gguf_file import GGUFFile, TensorInfo, Value

_PART = re.compile(r"(.+-)(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


class GGUFParts(Closing):
    """All parts of a GGUF that are there. Close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Read the headers of a file, and of the other parts if its name says that it is one.

        Raises:
            GGUFError: a part is not a GGUF, or is damaged; two have a tensor of one name; of
                types per expert, experts are missing although all parts are there.
        """
        paths = part_paths(Path(path))
        there = [each for each in paths if each.exists() or each == Path(path)]
        self.count, self.missing = len(paths), len(paths) - len(there)
        with ExitStack() as opened:
            self.files = [opened.enter_context(GGUFFile(each)) for each in there]
            self._place = {name: file for file in self.files for name in file.tensors}
            if len(self._place) != sum(len(file.tensors) for file in self.files):
                raise GGUFError(f"{path}: two of its parts have a tensor of one name")
            self.stacks = self._stacks(Path(path))
            self._opened = opened.pop_all()

    def _stacks(self, path: Path) -> Mapping[str, Stack]:
        """As a file has them, of all parts; none where a part is missing."""
        alone = self.files[0].stacks if len(self.files) == 1 else None  # none: it says it is a part
        if alone or self.missing or not self.per_expert:
            return alone or {}
        return stacks(self.tensors, str(path), expert_count(self.metadata))

    @property
    def per_expert(self) -> bool:
        """Whether types are given to single experts (`gguf_experts`)."""
        return any(file.per_expert for file in self.files)

    @property
    def metadata(self) -> Mapping[str, Value]:
        """The metadata, the first part's before the others'."""
        return ChainMap(*(dict(file.metadata) for file in self.files))

    @property
    def tensors(self) -> list[TensorInfo]:
        """The tensors of all parts."""
        return [info for file in self.files for info in file.tensors.values()]

    def read(self, name: str, start: int, stop: int) -> ggml.Floats:
        """Rows [stop - start, columns] of a tensor as float32."""
        file = self._place[name]
        info = file.tensors[name]
        return ggml.dequantize(info.type, file.rows(name, start, stop), info.shape[-1])

    def close(self) -> None:
        """Close all parts."""
        self._opened.close()


def part_paths(path: Path) -> list[Path]:
    """The paths of all parts, in order, of the split GGUF that a path is one of; else itself."""
    match = _PART.fullmatch(path.name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return [path]
    count = int(match[3])
    return [path.with_name(f"{match[1]}{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
