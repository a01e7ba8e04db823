"""Grammars in llama.cpp's GBNF, checked before llama.cpp reads them.

llama.cpp is handed what can neither end the process nor keep it busy for ever: it does not survive
{5,3} (rules until memory ends), recursion on the left that only shows once something is empty, or a
token in the middle of characters; and it takes hours over rules that double with every step.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

from gemcut.errors import UsageError

MAX_REPEAT = 2000  # llama.cpp's own; it takes a larger {,n} for no limit at all
_MAX_SIZE, _MAX_DEPTH, _MAX_ELEMENTS = 1 << 19, 100, 1 << 19
_MAX_WAYS, _MAX_CHAIN, _MAX_STEPS = 4096, 4096, 10_000_000  # to first characters
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
_DIGITS = frozenset("0123456789")
_HEX = {"x": 2, "u": 4, "U": 8}

Alternative = list[str | None]  # the name of a rule, or None: one character out of some
Rules = Mapping[str, list[Alternative]]


@lru_cache(maxsize=16)  # a server is given the same few again and again
def check_grammar(text: str) -> None:
    """Raise UsageError unless `text` is a grammar that llama.cpp can follow safely.

    That is: valid, every rule defined and able to end, no left recursion, of bounded size.
    """
    size = len(text.encode(errors="replace"))
    if size > _MAX_SIZE:
        raise UsageError(f"the grammar has {size} bytes, wanted at most {_MAX_SIZE}: shorten it")
    rules = _Reader(text).read()
    if "root" not in rules:
        raise UsageError("the grammar has no rule called root: name the one that it starts with so")
    for name, reference in ((n, r) for n, found in rules.items() for r in _references(found)):
        if reference not in rules:
            raise UsageError(f"the grammar's rule {name} uses {reference}, which is not defined")
    if endless := rules.keys() - _derivable(rules, characters=True):
        raise UsageError(
            f"the grammar's rule {min(endless)} can never end: give it an alternative that does"
        )
    _check_starts(rules, _derivable(rules, characters=False))


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


def _references(alternatives: list[Alternative]) -> Iterator[str]:
    return (item for items in alternatives for item in items if item is not None)


def _derivable(rules: Rules, characters: bool) -> set[str]:
    """Rules that can become something finite, of characters or else only the empty text."""
    users: dict[str, list[tuple[str, list[int]]]] = {}
    found, todo = set[str](), list[str]()
    for name, alternatives in rules.items():
        for items in alternatives:
            if None in items and not characters:
                continue
            missing = [len(needed := {item for item in items if item is not None})]
            todo += [name] if not needed else []
            for reference in needed:
                users.setdefault(reference, []).append((name, missing))
    while todo:
        if (name := todo.pop()) in found:
            continue
        found.add(name)
        for user, missing in users.get(name, []):
            missing[0] -= 1
            todo += [user] if not missing[0] else []
    return found


@dataclass(frozen=True)
class _Start:
    """What llama.cpp has to follow from a rule to the first characters it may begin with."""

    ways: int
    steps: int
    depth: int


def _check_starts(rules: Rules, empty: set[str]) -> None:
    """Refuse left recursion, and beginnings that llama.cpp would follow for hours.

    It follows every way from a rule to its first characters, once for each way there is.
    """
    starts: dict[str, _Start] = {}
    for name in rules:
        entered, todo = set[str](), [name]
        while todo:
            current = todo[-1]
            first = list(_first(rules[current], empty))
            waiting = [each for each in first if each is not None and each not in starts]
            if current in starts or not waiting:
                entered.discard(todo.pop())
                starts[current] = _start(current, [starts[each] for each in first if each], first)
                continue
            entered.add(current)
            if recursive := next((each for each in waiting if each in entered), None):
                raise UsageError(
                    f"the grammar's rule {recursive} begins with itself (left recursion): let "
                    "something come first, and repeat nothing that may be empty"
                )
            todo += waiting
    if sum(start.steps for start in starts.values()) > _MAX_STEPS:
        raise UsageError(f"the grammar's rules take more than {_MAX_STEPS} steps to their starts")


def _start(name: str, rules: list[_Start], first: Alternative) -> _Start:
    found = _Start(
        ways=sum(each.ways for each in rules) + first.count(None),
        steps=sum(each.steps for each in rules) + 1,
        depth=max((each.depth for each in rules), default=0) + 1,
    )
    for what, value, most in (
        ("ways to begin", found.ways, _MAX_WAYS),
        ("rules to pass before it begins", found.depth, _MAX_CHAIN),
    ):
        if value > most:
            raise UsageError(
                f"the grammar's rule {name} has {value} {what}, wanted at most {most}: write what "
                "they share once"
            )
    return found


def _first(alternatives: list[Alternative], empty: set[str]) -> Iterator[str | None]:
    """What a rule's alternatives may begin with; None for characters or for nothing."""
    for items in alternatives:
        for item in items:
            yield item
            if item not in empty:
                break
        else:
            yield None
