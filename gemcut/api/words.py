"""How the verbs are told things: paths and sizes as people write them, and what a file is for."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Literal, TypedDict

from gemcut.sizes import parse_context, parse_size

Where = str | PathLike[str]  # a path
Size = int | str  # bytes, or "12G"
Tokens = int | str  # or "32k", with k as 1024


class Wanted(TypedDict, total=False):
    """What a plan is for, by the names of the command line; what is not said is this machine's."""

    vram: Size | Sequence[Size]  # of each card
    ram: Size  # of the host; 0: all on cards
    machine: str  # "rtx-4070+ddr5-5600", or the path of a machine.json
    context: Tokens  # over all sequences
    kv: str  # type of keys and values
    cache_type_k: str
    cache_type_v: str
    parallel: int
    ubatch: int
    size: Size  # the finished file is never larger
    bpw: float
    min_speed: float  # tokens per second, predicted
    max_kld: float  # predicted
    prefer: Literal["speed", "balance", "quality"]
    types: str | Sequence[str]
    rules: Sequence[str]  # "blk.*.attn_*=q6_k"
    floors: Mapping[str, str]  # {"experts": "q4_k"}
    per_expert: bool
    plain: bool


def bytes_of(size: Size) -> int:
    """The bytes that a size means. Raises UsageError: it is none."""
    return parse_size(size) if isinstance(size, str) else size


def tokens_of(tokens: Tokens) -> int:
    """The tokens that a length means. Raises UsageError: it is none."""
    return parse_context(tokens) if isinstance(tokens, str) else tokens


def path_of(path: Where | None) -> Path | None:
    """The same as a Path; None stays None."""
    return None if path is None else Path(path)


def paths_of(paths: Where | Iterable[Where]) -> tuple[Path, ...]:
    """One path or several."""
    several = [paths] if isinstance(paths, str | PathLike) else paths
    return tuple(map(Path, several))
