"""A file with types per expert as llama.cpp is shown it: the stock file that it stands for.

Where its experts are single tensors, the view has the stack that llama.cpp expects, in the type
that takes the fewest bytes: nobody reads them, they are zeros. All else is as in the file. The view
is a header, made here, and pieces of the file behind it; nothing is written to a disk.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemcut import ggml
from gemcut.gguf_experts import Stack, stack_of, together
from gemcut.gguf_file import TensorInfo
from gemcut.gguf_layout import Layout
from gemcut.gguf_parts import GGUFParts


@dataclass(frozen=True)
class View:
    """A stock file that is nowhere, and where its bytes are."""

    header: bytes
    pieces: NDArray[np.uint64]  # [n, 4] by start: start in the view, bytes, part, offset there
    size: int  # bytes
    hollow: int  # bytes of the stacks, which are zeros


def stock_view(parts: GGUFParts) -> View:
    """The view of a file with types per expert; of one that is split, of all parts.

    Raises:
        GGUFError: a metadata value does not fit its kind.
    """
    metadata = {k: v for k, v in parts.metadata.items() if not k.startswith("split.")}
    layout, where = Layout(metadata, tuple(_tensors(parts))), places(parts)
    begin = layout.data_offset
    pieces = [
        (begin + info.offset, info.nbytes, *where[info.name])
        for info in layout.placed
        if info.name in where
    ]
    hollow = sum(info.nbytes for info in layout.tensors if info.name not in where)
    return View(layout.header, np.array(pieces, np.uint64).reshape(-1, 4), layout.size, hollow)


def places(parts: GGUFParts) -> dict[str, tuple[int, int]]:
    """The part and the offset in it where each tensor of a file is, by its name."""
    return {
        info.name: (number, file.data_offset + info.offset)
        for number, file in enumerate(parts.files)
        for info in file.tensors.values()
    }


def patterns(stacks: Mapping[str, Stack], tensors: Iterable[TensorInfo]) -> list[str]:
    """Regular expressions, as few as possible, of the stacks' names and no other tensor's.

    llama.cpp builds each of them anew for each tensor.
    """
    blocks: dict[str, list[str]] = {}
    for name in stacks:
        _, block, rest = name.split(".", 2)
        blocks.setdefault(rest, []).append(block)
    stock = {info.name.split(".", 2)[-1] for info in tensors if stack_of(info.name) is None}
    return [
        rf"^blk\.({'[0-9]+' if rest not in stock else '|'.join(numbers)})\.{rest}$".replace(
            ".weight", r"\.weight"
        )
        for rest, numbers in blocks.items()
    ]


def _tensors(parts: GGUFParts) -> Iterator[TensorInfo]:
    """Every tensor of the view."""
    for each in together(parts.tensors, parts.stacks):
        yield _hollow(each) if isinstance(each, Stack) else each


def _hollow(stack: Stack) -> TensorInfo:
    """A stack of the type that takes the fewest bytes for rows of this length."""
    fitting = [kind for kind in ggml.types().values() if kind.fits(stack.shape[-1])]
    return TensorInfo(stack.name, stack.shape, min(fitting, key=lambda kind: kind.bpw))
