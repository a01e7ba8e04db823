"""Parts of a JSON value as text in GBNF: literals, choices, ranges of numbers, string patterns."""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from os.path import commonprefix

# What Python's own parser makes of a regular expression; there is no public way to it.
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any, NoReturn

from gemcut.errors import UsageError
from gemcut.gbnf_reader import MAX_REPEAT

Ranges = list[tuple[int, int]]  # of code points, sorted, both ends included
Add = Callable[[str], str]  # keeps a rule and gives its name

_LAST = 0x10FFFF
_BLOCK, _FAR = 1000, 1_000_000  # no answer is longer
_MOST_PATTERN = 2000
_ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_UNSAFE: Ranges = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0xD800, 0xDFFF)]  # JSON escapes them
_DIGIT: Ranges = [(0x30, 0x39)]
_WORD: Ranges = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_SPACE: Ranges = [(9, 13), (0x20, 0x20), (0xA0, 0xA0), (0x2028, 0x2029), (0xFEFF, 0xFEFF)]


def literal(text: str) -> str:
    """A text as GBNF quotes it."""
    return '"' + "".join(map(_quoted, text)) + '"'


def choice(texts: Iterable[str], add: Add) -> str:
    """Any of some texts; what they share at the start is written once, or each would be a way."""
    groups: dict[str, list[str]] = {}
    for text in dict.fromkeys(texts):
        groups.setdefault(text[:1], []).append(text)
    found = []
    for group in groups.values():
        shared = group[0] if len(group) == 1 else commonprefix(group)
        rest = [text[len(shared) :] for text in group]
        found.append(literal(shared) + (f" {add(choice(rest, add))}" if len(group) > 1 else ""))
    return " | ".join(found)


def times(item: str, least: int, most: int | None, add: Add) -> str:
    """An item (a rule, a group) repeated: also more often than a grammar may say at once."""
    most = None if most is None else min(most, _FAR)
    if least > MAX_REPEAT or (most is not None and most < least):
        _fail(
            f"{least} to {most} times, wanted at least 0 to {MAX_REPEAT} times, and up from there"
        )
    if most is None:
        return f"{item}{{{least},}}"
    if most <= MAX_REPEAT:
        return f"{item}{{{least},{most}}}"
    blocks, rest = divmod(most - least, _BLOCK)
    if not blocks:
        return f"{item}{{{least}}} {item}{{0,{rest}}}"
    block = add(f"{item}{{{_BLOCK}}}")
    few = f"{block}{{0,{blocks - 1}}} {item}{{0,{_BLOCK - 1}}}"
    return f"{item}{{{least}}} ({few} | {block}{{{blocks}}} {item}{{0,{rest}}})"


# --- numbers ---


def integers(least: int | None, most: int | None) -> str:
    """Whole numbers of up to 18 digits in a range."""
    far = 10**18 - 1
    low, high = max(-far, -far if least is None else least), min(far, far if most is None else most)
    if low > high:
        raise UsageError(f"there is no whole number from {least} to {most}, of 18 digits at most")
    found = [f'"-" ({_natural(max(1, -high), -low)})'] if low < 0 else []
    return " | ".join([*found, _natural(max(0, low), high)] if high >= 0 else found)


def numbers(least: int | None, most: int | None, open_least: bool, open_most: bool) -> str:
    """Numbers between whole ones; an open end is not among them. No exponents."""
    found = []
    if most is None or most > 0 or (most == 0 and not open_most):
        start, excluded = (0, False) if least is None or least < 0 else (least, open_least)
        found.append(_positive(start, most, excluded, open_most))
    if least is None or least < 0:
        start, excluded = (0, True) if most is None or most >= 0 else (-most, open_most)
        end = None if least is None else -least
        found.append(f'"-" ({_positive(start, end, excluded, open_least)})')
    return " | ".join(found) or _fail(f"there is no number from {least} to {most}")


def _positive(least: int, most: int | None, open_least: bool, open_most: bool) -> str:
    zeros = '("." "0"{1,20})?'
    far = 10**18 if most is None else most
    found = [] if open_least or (far == least and open_most) else [f'"{least}" {zeros}']
    if far > least:
        found.append(f'"{least}." [0-9]{{0,20}} [1-9]')
        found += [] if open_most else [f'"{far}" {zeros}']
    if far > least + 1:
        found.append(f'({_natural(least + 1, far - 1)}) ("." [0-9]{{1,20}})?')
    return " | ".join(found) or _fail(f"there is no number from {least} to {most}")


def _natural(least: int, most: int) -> str:
    """Whole numbers from 0 up, in the digits of each length."""
    found = []
    for length in range(len(str(least)), len(str(most)) + 1):
        low = max(least, 10 ** (length - 1) if length > 1 else 0)
        found.append(_digits(str(low), str(min(most, 10**length - 1))))
    return " | ".join(found)


def _digits(low: str, high: str) -> str:
    """Numbers of one length; `low` and `high` may start with zeros."""
    rest = len(low) - 1
    if low == high:
        return f'"{low}"'
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return f"[{low[0]}-{high[0]}]" + (f" [0-9]{{{rest}}}" if rest else "")
    if low[0] == high[0]:
        return f'"{low[0]}" ({_digits(low[1:], high[1:])})'
    found = [f'"{low[0]}" ({_digits(low[1:], "9" * rest)})']
    if int(high[0]) - int(low[0]) > 1:
        found.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}] [0-9]{{{rest}}}")
    return " | ".join([*found, f'"{high[0]}" ({_digits("0" * rest, high[1:])})'])


# --- patterns ---


def pattern(text: str) -> str:
    """What is between the quotes of a JSON string that a regular expression is found in.

    Raises:
        UsageError: not a regular expression, or one that looks around or back.
    """
    if len(text) > _MOST_PATTERN:
        _fail(f"a pattern of {len(text)} characters, wanted at most {_MOST_PATTERN}")
    try:
        with warnings.catch_warnings():  # of what a later Python may read otherwise, as [a||b]
            warnings.simplefilter("ignore")
            tree = _parser.parse(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"the pattern {text!r} is not valid: {error}") from error
    if tree.state.flags & ~re.UNICODE:
        _fail(f"the pattern {text!r} sets flags, which a grammar cannot keep")
    single = len(tree) == 1 and tree[0][0] is _constants.BRANCH
    return " | ".join(_anchored(list(branch)) for branch in (tree[0][1][1] if single else [tree]))


def _anchored(parts: list[Any]) -> str:
    anything = f"{_one_of(_without(_UNSAFE[3:]))}*"
    begun = bool(parts) and parts[0][0] is _constants.AT and "BEGINNING" in str(parts[0][1])
    parts = parts[1:] if begun else parts
    ended = bool(parts) and parts[-1][0] is _constants.AT and "END" in str(parts[-1][1])
    inner = _sequence(parts[:-1] if ended else parts)
    return " ".join([*([] if begun else [anything]), inner, *([] if ended else [anything])])


def _sequence(parts: Iterable[Any]) -> str:
    return " ".join(map(_part, parts)) or '""'


def _part(part: Any) -> str:
    kind, value = part
    if kind is _constants.LITERAL:
        return _one_of([(value, value)])
    if kind is _constants.NOT_LITERAL:
        return _one_of(_without([(value, value)]))
    if kind is _constants.ANY:
        return _one_of(_without([(10, 10), (13, 13)]))
    if kind is _constants.IN:
        return _one_of(_class(value))
    if kind is _constants.BRANCH:
        return "(" + " | ".join(map(_sequence, value[1])) + ")"
    if kind is _constants.SUBPATTERN and not value[1] and not value[2]:
        return f"({_sequence(value[3])})"
    if kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
        least, most, repeated = value
        end = "" if most == _constants.MAXREPEAT else most
        return f"({_sequence(repeated)}){{{least},{end}}}"
    return _fail(f"a pattern uses {str(kind).lower()}, which a grammar cannot keep")


def _class(items: Sequence[Any]) -> Ranges:
    found: Ranges = []
    for kind, value in items:
        if kind is _constants.LITERAL:
            found.append((value, value))
        elif kind is _constants.RANGE:
            found.append(value)
        elif kind is _constants.CATEGORY:
            found += _category(str(value).lower())
    negated = any(kind is _constants.NEGATE for kind, _ in items)
    return _without(found) if negated else found


def _category(name: str) -> Ranges:
    found = {"digit": _DIGIT, "word": _WORD, "space": _SPACE}.get(name.rpartition("_")[2], [])
    return _without(found) if "_not_" in name else found


def _one_of(ranges: Ranges) -> str:
    """One character of a JSON string, written as JSON wants it."""
    safe = "".join(
        _quoted(chr(a)) + (f"-{_quoted(chr(b))}" if b > a else "")
        for a, b in _without([*_without(ranges), *_UNSAFE])
    )
    escaped = "".join(
        _quoted(short)
        for char, short in _ESCAPES.items()
        if any(a <= ord(char) <= b for a, b in ranges)
    )
    found = [f"[{safe}]"] * bool(safe) + [f'"\\\\" [{escaped}]'] * bool(escaped)
    return f"({' | '.join(found)})" if found else _fail("a pattern wants characters JSON has not")


def _without(ranges: Ranges) -> Ranges:
    """All other code points."""
    found, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            found.append((start, low - 1))
        start = max(start, high + 1)
    return [*found, (start, _LAST)] if start <= _LAST else found


def _quoted(char: str) -> str:
    """A character within GBNF's quotes or brackets."""
    if char in '\\"[]-':
        return "\\" + char
    if char.isascii() and char.isprintable() and char != "^":
        return char
    return f"\\U{ord(char):08X}"


def _fail(why: str) -> NoReturn:
    raise UsageError(why)
