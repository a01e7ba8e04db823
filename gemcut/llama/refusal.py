"""Why llama.cpp refused, by its log: there was no memory, or something else is wrong."""

import re
from collections.abc import Iterable, Sequence

from gemcut.errors import EngineError, OutOfMemory
from gemcut.llama.library import log
from gemcut.sizes import format_size

# What the backends, the allocator, the caches and the C++ and C libraries say of memory. Where a
# backend says it in words of its own, one of the lines after it has one of these.
_SHORT = re.compile(
    r"(unable|failed|can't) to allocate|can't allocate|failed to allocate"
    r"|failed to reserve initial output buffer"
    r"|cudaMalloc failed|Out of memory|out of memory|OutOf(Device|Host)Memory"
    r"|bad_alloc|Cannot allocate memory|insufficient memory|posix_memalign failed"
)
# "failed to allocate CUDA0 buffer of size 123"; the kinds of buffers are no devices.
_BUFFER = re.compile(r"to allocate (?!compute |output |buffer )(\S+) buffer(?: of size (\d+)$)?")
_CPU = re.compile(r"to allocate buffer of size (\d+)$")


def refusal(what: str, mark: int) -> EngineError:
    """The error that says what llama.cpp did not do, and why, by its log since `mark`."""
    lines = log.errors(mark)
    short = [line for line in lines if _SHORT.search(line)]
    if not short:
        return EngineError(f"{what}: {log.reason(mark)}")
    device, wanted = _missing(short)
    size = f"{format_size(wanted)} " if wanted else ""
    where = f" on {device}" if device else ""
    return OutOfMemory(f"{what}: no memory for {size}more{where} ({short[0]})", device, wanted)


def _missing(lines: Sequence[str]) -> tuple[str | None, int]:
    """The device and the bytes of the buffer that could not be had, as far as lines say."""
    named = list(_matches(_BUFFER, lines))
    device = named[0][1] if named else None
    sizes = [match[2] for match in named if match[2]] or [m[1] for m in _matches(_CPU, lines)]
    return device, int(sizes[0]) if sizes else 0


def _matches(expression: re.Pattern[str], lines: Iterable[str]) -> Iterable[re.Match[str]]:
    return filter(None, map(expression.search, lines))
