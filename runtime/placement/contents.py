"""What placement has to know of a finished file: its tensors, what a token reads of them, its
layers. Headers alone are read."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gemcut.errors import PlanError
from gemcut.gguf_experts import Stack, together
from gemcut.gguf_file import GGUFFile, TensorInfo, Value
from gemcut.gguf_parts import GGUFParts
from gemcut.kv_layout import MAX_BLOCKS
from gemcut.profile import HOST
from gemcut.runtime.memory.tensors import EMBEDDING, OUTPUT, Placed, block_of, layer_of
from gemcut.runtime.speed.throughput import active_shares


@dataclass(frozen=True)
class Contents:
    """A file's metadata, and its tensors, none of them placed yet: all are on the host."""

    name: str  # of the file, for messages
    metadata: Mapping[str, Value]
    tensors: tuple[Placed, ...]

    @cached_property
    def blocks(self) -> int:
        """Number of blocks; the output is one more layer to llama.cpp.

        Raises:
            PlanError: more than llama.cpp has.
        """
        last = max((block_of(tensor.name) or 0 for tensor in self.tensors), default=0)
        found = max(last + 1, self._number("block_count") or 0)
        if found > MAX_BLOCKS:
            raise PlanError(f"{self.name}: {found} blocks, llama.cpp takes {MAX_BLOCKS} at most")
        return found

    @cached_property
    def shares(self) -> dict[str, float]:
        """Of each tensor's bytes, what a token reads."""
        return active_shares(self.metadata, [tensor.name for tensor in self.tensors])

    @property
    def per_expert(self) -> bool:
        """Whether every expert of some tensors has a type of its own."""
        return any(tensor.single for tensor in self.tensors)

    @cached_property
    def tied(self) -> bool:
        """Whether the embedding is the output's matrix, too."""
        return all(tensor.name != OUTPUT for tensor in self.tensors)

    @property
    def trained(self) -> int | None:
        """Tokens of a context that the model was made for, if that is known."""
        return self._number("context_length")

    def layer(self, tensor: Placed) -> int | None:
        """The layer that a tensor belongs to; None: rows of it are looked up on the host."""
        return layer_of(tensor.name, self.blocks, self.tied)

    def copied(self, tensor: Placed) -> bool:
        """Whether the host keeps a copy of a tensor, out of which rows are looked up."""
        return self.tied and tensor.name == EMBEDDING

    def _number(self, key: str) -> int | None:
        named = self.metadata.get("general.architecture")
        value = self.metadata.get(f"{named.data}.{key}") if named else None
        data: Any = value.data if value else None
        return data if isinstance(data, int) and data > 0 else None


def contents_of(file: GGUFFile | GGUFParts) -> Contents:
    """The contents of an opened file, of which all parts have to be there.

    Raises:
        PlanError: it has no tensors, or parts are missing.
    """
    if isinstance(file, GGUFParts):
        infos, path = file.tensors, file.files[0].path
        if file.missing:
            raise PlanError(f"{path}: {file.missing} of its {file.count} parts are missing")
    else:
        infos, path = list(file.tensors.values()), file.path
    if not infos or "general.architecture" not in file.metadata:
        raise PlanError(f"{path}: there is no model in it")
    return Contents(path.name, file.metadata, tuple(map(_placed, together(infos, file.stacks))))


def _placed(found: TensorInfo | Stack) -> Placed:
    if isinstance(found, TensorInfo):
        return Placed(found.name, found.type.name, found.nbytes, found.weights, HOST)
    sizes: Counter[str] = Counter()
    for info in found.experts:
        sizes[info.type.name] += info.nbytes
    kinds = tuple(sizes.most_common())
    return Placed(found.name, kinds[0][0], found.nbytes, found.weights, HOST, kinds=kinds)
