"""Grammars in GBNF, read as llama.cpp does: rules, with those of groups and repetitions."""

from collections.abc import Mapping
from typing import NoReturn

from gemcut.errors import UsageError

MAX_REPEAT = 2000  # llama.cpp's own; it takes a larger {,n} for no limit at all
_MAX_DEPTH, _MAX_ELEMENTS = 100, 1 << 19
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
_DIGITS = frozenset("0123456789")
_HEX = {"x": 2, "u": 4, "U": 8}

Alternative = list[str | None]  # the name of a rule, or None: one character out of some
Rules = Mapping[str, list[Alternative]]


def read_grammar(text: str) -> Rules:
    """The rules of a grammar. Raises UsageError, with line and column, for what is none."""
    return _Reader(text).read()


class _Reader:
    """Reads a grammar as llama.cpp's parser does, and counts what that would make of it."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._rules: dict[str, list[Alternative]] = {}
        self._names: dict[str, None] = {}  # in llama.cpp's order: of mention
        self._elements = self._depth = 0

    def read(self) -> dict[str, list[Alternative]]:
        """All rules, those of groups and repetitions included."""
        if "\0" in self._text or not self._text.isprintable() and _surrogate(self._text):
            self._fail("a character that is none")
        self._space(True)
        while self._peek():
            self._rule()
        return self._rules

    def _rule(self) -> None:
        name = self._word()
        self._space(False)
        if not self._take("::="):
            self._fail("wanted ::= here")
        if name in self._rules:
            self._fail(f"the rule {name} is defined twice")
        self._space(True)
        self._names[name] = None
        self._alternatives(name, name, False)
        if self._peek() and not self._take("\r\n") and not (self._take("\n") or self._take("\r")):
            self._fail("wanted the end of the line here")
        self._space(True)

    def _alternatives(self, name: str, base: str, nested: bool) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._fail(f"groups are nested deeper than {_MAX_DEPTH}")
        found = [self._sequence(base, nested)]
        while self._take("|"):
            self._space(True)
            found.append(self._sequence(base, nested))
        self._depth -= 1
        self._rules[name] = found

    def _sequence(self, base: str, nested: bool) -> Alternative:
        items: Alternative = []
        start, weight = 0, 1  # of the latest item: where it starts, how many rules are in it
        while following := self._peek():
            if following in "*+?{":
                least, most = self._times(nested)
                weight = self._repeat(items, start, weight, (least, most), base)
            elif following in "<!":
                self._fail("tokens in grammars are not supported: write characters")
            elif following in '"[.(' or following in _WORD:
                start = len(items)
                new, weight = self._item(base)
                items += new
                self._count(len(new))
            else:
                break
            self._space(nested)
        return items

    def _item(self, base: str) -> tuple[Alternative, int]:
        """An item's elements, and how many rules it brought."""
        if self._take('"'):
            return self._literal(), 1
        if self._take("["):
            return self._characters(), 1
        if self._take("."):
            return [None], 1
        if not self._take("("):
            name = self._word()
            self._names[name] = None
            return [name], 1
        self._space(True)
        before = len(self._names)
        name = self._generated(base)
        self._alternatives(name, base, True)
        if not self._take(")"):
            self._fail("wanted ) here")
        return [name], len(self._names) - before

    def _literal(self) -> Alternative:
        items: Alternative = []
        while not self._take('"'):
            self._character()
            items.append(None)
        return items

    def _characters(self) -> Alternative:
        self._take("^")
        if self._peek() == "]":
            self._fail("a set without characters")
        while not self._take("]"):
            first = self._character()
            if self._peek() == "-" and self._peek(1) != "]":
                self._at += 1
                if self._character() < first:
                    self._fail("a range of characters from high to low")
            self._count(2)
        return [None]

    def _character(self) -> int:
        found = self._peek() or self._fail("it ends within quotes or brackets")
        self._at += 1
        if found != "\\":
            return ord(found)
        kind = self._peek()
        self._at += 1
        if kind in _HEX:
            digits = self._text[self._at : self._at + _HEX[kind]]
            self._at += _HEX[kind]
            if len(digits) < _HEX[kind] or not set(digits) <= set("0123456789abcdefABCDEF"):
                self._fail(f"wanted {_HEX[kind]} hexadecimal digits here")
            return int(digits, 16)
        if not kind or kind not in 'trn\\"[]-':
            self._fail(f"there is no escape \\{kind}")
        return ord({"t": "\t", "r": "\r", "n": "\n"}.get(kind, kind))

    def _times(self, nested: bool) -> tuple[int, int | None]:
        for sign, times in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return times
        self._at += 1
        self._space(nested)
        least = self._number()
        self._space(nested)
        most: int | None = least
        if self._take(","):
            self._space(nested)
            most = self._number() if self._peek() in _DIGITS else None
            self._space(nested)
        if not self._take("}"):
            self._fail("wanted } here")
        if max(least, most or 0) > MAX_REPEAT or (most is not None and most < least):
            self._fail(f"repeated {least} to {most} times, wanted up to {MAX_REPEAT}, least first")
        return least, most

    def _repeat(
        self, items: Alternative, start: int, weight: int, times: tuple[int, int | None], base: str
    ) -> int:
        """Repeat the latest item as llama.cpp does, with a rule for each time that is optional."""
        (least, most), item = times, items[start:]
        total = most or least or 1
        if not item:
            self._fail("nothing to repeat here")
        if weight * total > MAX_REPEAT:
            self._fail(f"{weight} rules repeated {total} times, wanted up to {MAX_REPEAT} in all")
        optional = 1 if most is None else most - least
        self._count(len(item) * max(least - 1, 0) + (len(item) + 3) * optional)
        del items[start:]
        items += item * least
        name = ""
        for _ in range(optional):
            name, before = self._generated(base), name
            again = [name] if most is None else [before] if before else []
            self._rules[name] = [[*item, *again], []]
        if optional:
            items.append(name)
        return weight * total

    def _generated(self, base: str) -> str:
        name = f"{base}_{len(self._names)}"  # no name of a grammar has an underscore
        self._names[name] = None
        return name

    def _count(self, elements: int) -> None:
        self._elements += elements
        if self._elements > _MAX_ELEMENTS:
            self._fail(f"more than {_MAX_ELEMENTS} elements, repetitions written out")

    def _word(self) -> str:
        start = self._at
        while self._peek() in _WORD:
            self._at += 1
        return self._text[start : self._at] or self._fail("wanted the name of a rule here")

    def _number(self) -> int:
        start = self._at
        while self._peek() in _DIGITS:
            self._at += 1
        if not 1 <= self._at - start <= 9:
            self._fail("wanted a number here, of nine digits at most")
        return int(self._text[start : self._at])

    def _space(self, lines: bool) -> None:
        while (following := self._peek()) and following in (" \t#\r\n" if lines else " \t#"):
            if following == "#":
                while self._peek() not in ("", "\r", "\n"):
                    self._at += 1
            else:
                self._at += 1

    def _peek(self, ahead: int = 0) -> str:
        return self._text[self._at + ahead : self._at + ahead + 1]

    def _take(self, wanted: str) -> bool:
        found = self._text.startswith(wanted, self._at)
        self._at += len(wanted) if found else 0
        return found

    def _fail(self, why: str) -> NoReturn:
        before = self._text[: self._at]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise UsageError(f"the grammar is not valid, line {line}, column {column}: {why}")


def _surrogate(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)
