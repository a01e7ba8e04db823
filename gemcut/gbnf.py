"""Grammars in llama.cpp's GBNF, checked before llama.cpp reads them.

llama.cpp is handed what can neither end the process nor keep it busy for ever: it does not survive
{5,3} (rules until memory ends), recursion on the left that only shows once something is empty, or a
token in the middle of characters; and it takes hours over rules that double with every step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from gemcut.errors import UsageError
from gemcut.gbnf_reader import Alternative, Rules, read_grammar

_MAX_SIZE = 1 << 19  # bytes
_MAX_WAYS, _MAX_CHAIN, _MAX_STEPS = 4096, 4096, 10_000_000  # to first characters


@lru_cache(maxsize=16)  # a server is given the same few again and again
def check_grammar(text: str) -> None:
    """Raise UsageError unless `text` is a grammar that llama.cpp can follow safely.

    That is: valid, every rule defined and able to end, no left recursion, of bounded size.
    """
    size = len(text.encode(errors="replace"))
    if size > _MAX_SIZE:
        raise UsageError(f"the grammar has {size} bytes, wanted at most {_MAX_SIZE}: shorten it")
    rules = read_grammar(text)
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
