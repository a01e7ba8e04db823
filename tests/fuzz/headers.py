"""Damage to a GGUF's metadata and table of tensors; what surrounds it stays as it should be.

Read and written here by hand: gemcut's own writer refuses what is wanted.
"""

import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from tests.fuzz.mutate import BYTES, EXTREMES, WIDE, Mutator

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _U32 = 8, 9, 4
_FLOATS = (float("nan"), float("inf"), -1.0, 0.0, 1e-38, 3e38)
_NUMBERS = (0, 1, 2, 3, 7, 32, 64, 255, 256, 257, 511, 512, 513, 1024, 65536, *EXTREMES)
_TYPES = (*range(45), 255, 0xFFFFFFFF)


@dataclass(frozen=True)
class Pair:
    """A metadata value: its key, its kind and its bytes."""

    key: bytes
    kind: int
    data: bytes


@dataclass(frozen=True)
class Info:
    """A line of the table of tensors."""

    name: bytes
    dims: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Parsed:
    """A file: its header, and everything behind it."""

    pairs: tuple[Pair, ...]
    infos: tuple[Info, ...]
    data: bytes


@lru_cache(maxsize=8)
def parse(raw: bytes) -> Parsed:
    """A good file. Raises struct.error or KeyError for another."""
    n_infos, n_pairs = struct.unpack_from("<QQ", raw, 8)
    at, pairs, infos = 24, [], []
    for _ in range(n_pairs):
        key, at = _string(raw, at)
        (kind,) = struct.unpack_from("<I", raw, at)
        end = _end(raw, at + 4, kind)
        pairs.append(Pair(key, kind, raw[at + 4 : end]))
        at = end
    for _ in range(n_infos):
        name, at = _string(raw, at)
        (count,) = struct.unpack_from("<I", raw, at)
        *dims, kind, offset = struct.unpack_from(f"<{count}QIQ", raw, at + 4)
        infos.append(Info(name, tuple(dims), kind, offset))
        at += 4 + 8 * count + 12
    return Parsed(tuple(pairs), tuple(infos), raw[-(-at // 32) * 32 :])


def written(file: Parsed, counts: tuple[int, int] | None = None) -> bytes:
    """The file; it may say that it has other counts of tensors and of values."""
    n_infos, n_pairs = counts or (len(file.infos), len(file.pairs))
    parts = [b"GGUF", struct.pack("<IQQ", 3, n_infos & _MOST, n_pairs & _MOST)]
    for pair in file.pairs:
        parts += [
            struct.pack("<Q", len(pair.key)),
            pair.key,
            struct.pack("<I", pair.kind),
            pair.data,
        ]
    for info in file.infos:
        numbers = (len(info.dims), *(size & _MOST for size in info.dims))
        layout = f"<I{len(info.dims)}QIQ"
        parts += [struct.pack("<Q", len(info.name)), info.name]
        parts.append(struct.pack(layout, *numbers, info.kind, info.offset & _MOST))
    head = b"".join(parts)
    return head + bytes(-len(head) % 32) + file.data


_MOST = (1 << 64) - 1


def header(random: Random, raw: bytes) -> bytes:
    """One thing in the header is another; of one that is damaged already, some bytes."""
    try:
        return _changed(random, parse(raw))
    except (struct.error, KeyError, MemoryError, OverflowError):
        return random.choice(BYTES)(random, raw)


def _changed(random: Random, file: Parsed) -> bytes:
    what = random.random()
    if what < 0.6 and file.pairs:
        return written(replace(file, pairs=_changed_pairs(random, file.pairs)))
    if what < 0.97 and file.infos:
        return written(replace(file, infos=_changed_infos(random, file)))
    counts = (
        len(file.infos) + random.choice((-1, 1, 1 << 40)),
        len(file.pairs) + random.choice((-1, 0, 1)),
    )
    return written(file, counts)


GGUF: tuple[Mutator, ...] = (*[header] * 12, *BYTES)


def _changed_pairs(random: Random, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    found = list(pairs)
    at = random.randrange(len(found))
    pair, other = found[at], random.choice(found)
    match random.randrange(8):
        case 0:
            del found[at]
        case 1:
            found[at] = replace(pair, kind=other.kind, data=other.data)
        case 2:
            found[at] = replace(other, key=pair.key + b"x") if random.random() < 0.5 else other
        case 3:
            number = struct.pack("<I", random.choice(_NUMBERS))
            found[at] = replace(pair, kind=_U32, data=number)
        case _:
            found[at] = replace(pair, data=_changed_value(random, pair))
    return tuple(found)


def _changed_value(random: Random, pair: Pair) -> bytes:
    """Another value of the same kind."""
    if pair.kind == _STRING:
        text = pair.data[8:]
        text = random.choice(
            (b"", text[:-1], text * 2, b"\xff\xfe", b"a" * 70_000, b"\0", b"llama")
        )
        return struct.pack("<Q", len(text)) + text
    if pair.kind != _ARRAY:
        return _scalar(random, pair.kind)
    (kind, count) = struct.unpack_from("<IQ", pair.data)
    items = pair.data[12:]
    if kind in _SIZES:
        return _changed_array(random, kind, items)
    kept = random.choice((0, 1, count // 2, max(count, 1) - 1))
    end = 12
    for _ in range(kept):
        end = _end(pair.data, end, kind)
    return struct.pack("<IQ", kind, kept) + pair.data[12:end]


def _changed_array(random: Random, kind: int, items: bytes) -> bytes:
    size = _SIZES[kind]
    match random.randrange(4):
        case 0:
            items = items[: len(items) // size // 2 * size]
        case 1:
            items = items + _scalar(random, kind) * random.choice((1, 600, 100_000))
        case 2:
            items = b""
        case _:
            at = random.randrange(max(1, len(items) // size)) * size
            items = items[:at] + _scalar(random, kind) + items[at + size :]
    return struct.pack("<IQ", kind, len(items) // size) + items


def _scalar(random: Random, kind: int) -> bytes:
    if kind in (6, 12):
        return struct.pack("<f" if kind == 6 else "<d", random.choice(_FLOATS))
    size = _SIZES[kind]
    return (random.choice(_NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _changed_infos(random: Random, file: Parsed) -> tuple[Info, ...]:
    found = list(file.infos)
    at = random.randrange(len(found))
    info, other = found[at], random.choice(found)
    dims = list(info.dims) or [1]
    place = random.randrange(len(dims))
    match random.randrange(8):
        case 0:
            del found[at]
            return tuple(found)
        case 1:
            new = replace(
                info, name=random.choice((other.name, b"", b"x" * 64, info.name + b"\xff"))
            )
        case 2:
            new = replace(info, kind=random.choice(_TYPES))
        case 3:
            offsets = (other.offset, info.offset + 1, info.offset + 32, len(file.data), *WIDE)
            new = replace(info, offset=random.choice(offsets))
        case 4:
            new = replace(info, dims=other.dims, kind=other.kind, offset=other.offset)
        case 5:
            new = replace(info, dims=tuple(random.choice((dims[::-1], dims[1:], [*dims, 1]))))
        case _:
            size = dims[place]
            dims[place] = random.choice((size // 2, size * 2, size - 1, 0, 1, 256, *WIDE))
            new = replace(info, dims=tuple(dims))
    found[at] = new
    return tuple(found)


def _string(raw: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", raw, at)
    return raw[at + 8 : at + 8 + length], at + 8 + length


def _end(raw: bytes, at: int, kind: int) -> int:
    """Where a value that begins somewhere ends."""
    if kind == _STRING:
        return _string(raw, at)[1]
    if kind != _ARRAY:
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", raw, at)
    at += 12
    if inner in _SIZES:
        return at + count * _SIZES[inner]
    for _ in range(count):
        at = _end(raw, at, inner)
    return at
