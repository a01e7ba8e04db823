"""llama.cpp's binary files of multiple-choice tasks (`llama-perplexity --multiple-choice`).

    uint32 n_items
    uint32 places[n_items]             each item's offset in the file
    for every item:
        text question
        answers                        one of them is right
        answers                        several may be: read over, as llama.cpp does
    text:     uint32 n_bytes, UTF-8
    answers:  uint32 n <= 100, n texts, int32 labels[n]: 1 for a right one

All numbers are little-endian (`tools/perplexity/perplexity.cpp`). Items are read one after the
other: their places serve those who want a few of them.
"""

import struct
from collections.abc import Iterator

from gemcut.errors import TextError
from gemcut.eval.tasks.task import MOST_CHOICES, Item

_WORD = 4


def multiple_choice(data: bytes) -> Iterator[Item]:
    """The items of such a file. Raises TextError: cut short, or damaged."""
    cursor = _Cursor(data)
    count = cursor.number()
    cursor.take(_WORD * count)
    for number in range(1, count + 1):
        try:
            yield _item(cursor)
        except TextError as error:
            raise TextError(f"item {number} of {count}: {error}") from error


def looks_binary(data: bytes) -> bool:
    """Whether data begins with a count of less than 16 million, as no text does."""
    return data[_WORD - 1 : _WORD] == b"\0"


class _Cursor:
    """Reads on from a place in bytes; nothing is taken that is not there."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        left = len(self._data) - self.at
        if count > left:
            raise TextError(f"{count} bytes wanted at {self.at}, {left} are left: it is cut short")
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self) -> int:
        """The next uint32."""
        return int.from_bytes(self.take(_WORD), "little")

    def numbers(self, count: int) -> tuple[int, ...]:
        """As many of them."""
        return struct.unpack(f"<{count}I", self.take(_WORD * count))

    def text(self) -> str:
        """The next text."""
        data = self.take(self.number())
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise TextError(f"a text before byte {self.at} is not UTF-8") from error


def _item(cursor: _Cursor) -> Item:
    question = cursor.text()
    choices, labels = _answers(cursor)
    _answers(cursor)
    correct = frozenset(number for number, label in enumerate(labels) if label == 1)
    if not question:
        raise TextError("the question is empty")
    return Item(question, choices, correct)


def _answers(cursor: _Cursor) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Texts and their labels."""
    count = cursor.number()
    if count > MOST_CHOICES:
        raise TextError(f"{count} answers, wanted at most {MOST_CHOICES}: it is damaged")
    return tuple(cursor.text() for _ in range(count)), cursor.numbers(count)
