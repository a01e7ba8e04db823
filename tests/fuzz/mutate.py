"""Damage to bytes, to texts and to JSON: every function makes one case out of a good one."""

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes], bytes]

EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
WIDE = (*EXTREMES, 1 << 32, 1 << 40, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_LONG = 200_000  # characters or elements of what is to be too much
_LONG = 1 << 21  # characters of JSON, which take seconds to change again
_MOST = 1 << 24  # bytes of a case: changes on top of each other must not make gigabytes
_DEEP = 100_000  # brackets

# What stands for these in JSON while it is put together; json itself would refuse to write them.
_RAW = {
    "@deep": "[" * _DEEP + "]" * _DEEP,
    "@deepobject": '{"a":' * _DEEP + "1" + "}" * _DEEP,
    "@digits": "9" * 5000,
    "@exponent": "1e999",
    "@minus": "-1e999",
    "@nan": "NaN",
    "@half": '"\\ud800"',
    "@nul": '"\\u0000"',
    "@escape": '"\\u001b[2J\\n\\u202e"',
    "@long": '"' + "x" * _LONG + '"',
    "@zeros": "[" + "0," * _LONG + "0]",
}
_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "0", [], {}, [None], [[]], {"": None}),
    *(0, 1, -1, 2, 0.5, -0.0, 1e-320, 1e308, -1e308, 3.4e38),
    *(255, 256, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**300),
    *("/etc/passwd", "../../x", "a/b", "%s%n", "🙂", "\x00", "＿", "İ", "٣"),
    *_RAW,
)


def flip(random: Random, data: bytes) -> bytes:
    """A few bits, most often near the beginning, where headers are."""
    out = bytearray(data or b"\0")
    for _ in range(random.choice((1, 1, 2, 8))):
        out[_place(random, len(out))] ^= 1 << random.randrange(8)
    return bytes(out)


def extreme(random: Random, data: bytes) -> bytes:
    """A whole number of 1 to 8 bytes at the edge of its range."""
    size = random.choice((1, 2, 4, 4, 8, 8))
    value = random.choice(WIDE) & ((1 << 8 * size) - 1)
    at = _place(random, max(1, len(data) - size))
    return data[:at] + value.to_bytes(size, "little") + data[at + size :]


def cut(random: Random, data: bytes) -> bytes:
    """The end is missing, or a piece."""
    at = _place(random, len(data) + 1)
    return data[:at] if random.random() < 0.5 else data[:at] + data[at + _length(random) :]


def insert(random: Random, data: bytes) -> bytes:
    """Bytes of any kind where they do not belong."""
    at, kind = _place(random, len(data) + 1), random.randrange(3)
    new = random.randbytes(_length(random)) if kind else bytes([random.randrange(256)]) * 1000
    return data[:at] + new + data[at:]


def repeat(random: Random, data: bytes) -> bytes:
    """A piece many times over."""
    at, length = _place(random, len(data) + 1), _length(random)
    piece = data[at : at + length]
    return (
        data[:at] + piece * random.choice((2, 3, 50, max(1, _LONG // (len(piece) + 1)))) + data[at:]
    )


def move(random: Random, data: bytes) -> bytes:
    """A piece from elsewhere over what was there."""
    length, there = _length(random), _place(random, len(data) + 1)
    piece = data[there : there + length]
    at = _place(random, len(data) + 1)
    return data[:at] + piece + data[at + len(piece) :]


BYTES: tuple[Mutator, ...] = (flip, flip, extreme, extreme, cut, insert, repeat, move)


def words(*known: str) -> tuple[Mutator, ...]:
    """Damage to texts: bytes, and words that mean something to their reader."""

    def word(random: Random, data: bytes) -> bytes:
        at = random.randrange(len(data) + 1)
        return data[:at] + random.choice(known).encode() * _times(random) + data[at:]

    return (*BYTES, word, word, word, word)


def json_values(random: Random, data: bytes) -> bytes:
    """A value of a JSON document is another, elsewhere, gone, there twice or without an end."""
    if len(data) > _LONG:
        return flip(random, data)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return flip(random, data)
    box, text = [document], ""
    try:
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            holder, key = random.choice(_places(box))
            random.choice(_CHANGES)(random, holder, key, box)
            if (size := _size(box[0])) > 2 * _LONG:  # a thousand times itself, twice
                return flip(random, data)
            text = json.dumps(box[0])
            if size > _LONG:
                break
    # It holds itself by now, or a number that is too large for a fraction.
    except (ValueError, RecursionError, OverflowError):
        return flip(random, data)
    for name, raw in _RAW.items():
        text = text.replace(json.dumps(name), raw, max(1, _MOST // len(raw)))
    return _twice(random, text).encode("utf-8", "surrogatepass")


def _size(document: Any) -> int:
    """Characters of it as JSON about, counted no further than what is too long: a list may hold
    itself, or another twice that holds another twice."""
    left, size = [document], 0
    while left and size <= 2 * _LONG:
        value = left.pop()
        if isinstance(value, dict | list):
            left += value.values() if isinstance(value, dict) else value
        size += len(value) + 2 if isinstance(value, dict | list | str) else 2
    return size


JSON: tuple[Mutator, ...] = (*[json_values] * 8, *BYTES)


def mutated(random: Random, data: bytes, mutators: Sequence[Mutator]) -> bytes:
    """A case: mostly one change, sometimes several on top of each other."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = random.choice(mutators)(random, data)[:_MOST]
    return data


# --- changes of a JSON document ------------------------------------------------------------------


def _set(random: Random, holder: Any, key: Any, box: list[Any]) -> None:
    holder[key] = random.choice(_VALUES)


def _shift(random: Random, holder: Any, key: Any, box: list[Any]) -> None:
    old = holder[key]
    if isinstance(old, (int, float)):
        holder[key] = random.choice(
            (-old, old + 1, old - 1, old * 2, old * 1000, old / 3, str(old))
        )
    else:
        holder[key] = [old] if random.random() < 0.5 else {"a": old}


def _remove(random: Random, holder: Any, key: Any, box: list[Any]) -> None:
    del holder[key]
    if holder is box:
        box.append(None)


def _rename(random: Random, holder: Any, key: Any, box: list[Any]) -> None:
    if isinstance(holder, dict):
        holder[random.choice(("", "x" * 300, "\n", "../x", key + "x", key.upper()))] = holder.pop(
            key
        )
    else:
        holder[key] = [holder[key]] * random.choice((2, 1000))


def _copy(random: Random, holder: Any, key: Any, box: list[Any]) -> None:
    other, name = random.choice(_places(box))
    holder[key] = json.loads(json.dumps(other[name]))


_CHANGES = (_set, _set, _set, _shift, _remove, _rename, _copy)


def _places(box: list[Any]) -> list[tuple[Any, Any]]:
    """Where values are, as holder and key; of long lists the first ones."""
    found, todo = [], [box]
    while todo and len(found) < 5000:
        holder = todo.pop()
        keys = list(holder) if isinstance(holder, dict) else range(min(len(holder), 50))
        found += [(holder, key) for key in keys]
        todo += [holder[key] for key in keys if isinstance(holder[key], (dict, list))]
    return found


def _twice(random: Random, text: str) -> str:
    """Now and then a name that is there twice."""
    if text.startswith('{"') and random.random() < 0.05:
        name, colon, _ = text[1:].partition(":")
        return "{" + name + colon + "1, " + text[1:]
    return text


# --- numbers -------------------------------------------------------------------------------------


def _place(random: Random, length: int) -> int:
    """A position, one time in two in the first part of the data."""
    if length <= 1:
        return 0
    return random.randrange(min(length, random.choice((64, 1024, length, length))))


def _length(random: Random) -> int:
    return random.choice((1, 2, 4, 8, 16, 100, 1000))


def _times(random: Random) -> int:
    return random.choice((1, 1, 1, 1, 2, 100, 5000))
