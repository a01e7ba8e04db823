"""What the families' rules see of a checkpoint: tensors by name, decoded, unread."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from gemcut.convert.lazy import Array


class RawTensor(Protocol):
    """A tensor as a file holds it."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str:
        """As safetensors spells it: "BF16", "F8_E4M3", "U8", ..."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def file(self) -> str:
        """The name of the file that it lies in."""

    def view(self) -> npt.NDArray[Any]:
        """The mapped data in this shape; BF16 as uint16 bits, 8-bit floats as uint8."""


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint as the rules know it: one or several raw tensors, decoded."""

    name: str
    shape: tuple[int, ...]
    files: tuple[str, ...]  # that its data lies in
    open: Callable[[], Array]
