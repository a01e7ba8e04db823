"""Files of tasks in text: HellaSwag and Winogrande as llama.cpp reads them, and JSONL.

HellaSwag, six lines an item:

    context
    number of the right ending, 0 to 3
    ending 0 ... ending 3                                   four lines

Winogrande, a line an item; the choices take the place of "_":

    index,sentence with _,choice 1,choice 2,right one: 1 or 2

A sentence may stand in double quotes; nothing within is unescaped. A line of names may come first.

JSONL, an object a line; "context" is another name of "question", and may be missing:

    {"question": "...", "choices": ["...", "..."], "answer": 0, "domain": "..."}
"""

import json
from collections.abc import Iterator
from typing import Any

from gemcut.errors import TextError
from gemcut.eval.tasks.task import Item

_LINES = 6  # of a HellaSwag item
_FIELDS = 5  # of a Winogrande line
_SHOWN = 60  # characters of a faulty line


def hellaswag(text: str) -> Iterator[Item]:
    """The items of a HellaSwag file. Raises TextError."""
    lines = _lines(text)
    if len(lines) % _LINES:
        raise TextError(f"{len(lines)} lines, wanted a multiple of {_LINES}: {_LINES} an item")
    for start in range(0, len(lines), _LINES):
        context, label, *endings = lines[start : start + _LINES]
        if label.strip() not in ("0", "1", "2", "3"):
            raise TextError(f"line {start + 2}: {_shown(label)}, wanted the right ending, 0 to 3")
        yield _item(start + 1, context, tuple(endings), frozenset({int(label)}))


def winogrande(text: str) -> Iterator[Item]:
    """The items of a Winogrande file. Raises TextError."""
    for number, line in enumerate(_lines(text), start=1):
        fields = _fields(line)
        if number == 1 and fields[-1:] == ["answer"]:
            continue
        if len(fields) != _FIELDS or "_" not in fields[1] or fields[4] not in ("1", "2"):
            raise TextError(
                f"line {number}: {_shown(line)}, wanted index,sentence with _,choice,choice,1 or 2"
            )
        context, _, ending = fields[1].partition("_")
        if not ending:
            raise TextError(f"line {number}: {_shown(line)}, wanted words after the _")
        correct = frozenset({int(fields[4]) - 1})
        yield _item(number, context, (fields[2], fields[3]), correct, joint="", ending=ending)


def jsonl(text: str) -> Iterator[Item]:
    """The items of a JSONL file. Raises TextError."""
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TextError(f"line {number}: {_shown(line)} is not JSON: {error}") from error
        yield _object(number, given)


def _object(number: int, given: Any) -> Item:
    """An item out of what a line says."""
    if not isinstance(given, dict):
        raise TextError(f"line {number}: wanted an object with question, choices and answer")
    context, domain = given.get("question", given.get("context", "")), given.get("domain", "")
    choices, answer = given.get("choices"), given.get("answer")
    if not isinstance(context, str) or not isinstance(domain, str):
        raise TextError(f"line {number}: question and domain: wanted texts")
    if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
        raise TextError(f"line {number}: choices: wanted a list of texts")
    if not isinstance(answer, int) or isinstance(answer, bool):
        raise TextError(f"line {number}: answer: wanted the number of the right choice, from 0")
    # Where the space between them is given already, there is no second one.
    spaced = context[-1:].isspace() or any(each[:1].isspace() for each in choices)
    joint = "" if spaced or not context else " "
    correct = frozenset({answer})
    return _item(number, context, tuple(choices), correct, joint=joint, domain=domain)


def _item(number: int, *arguments: Any, **named: Any) -> Item:
    """An item that begins at a line."""
    try:
        return Item(*arguments, **named)
    except TextError as error:
        raise TextError(f"line {number}: {error}") from error


def _lines(text: str) -> list[str]:
    """The lines, which end at newlines alone: endings may hold other separators."""
    return [line.removesuffix("\r") for line in text.rstrip("\n").split("\n")]


def _fields(line: str) -> list[str]:
    """A line cut at its first four commas outside of quotes; the sentence without its quotes."""
    commas, quoted = [], False
    for place, character in enumerate(line):
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            commas.append(place)
            if len(commas) == _FIELDS - 1:
                break
    ends = [*commas, len(line)]
    fields = [line[a:b] for a, b in zip([0, *(c + 1 for c in commas)], ends, strict=True)]
    if len(fields) == _FIELDS:
        sentence = fields[1]
        fields[1] = sentence[1:-1] if sentence[:1] == '"' else sentence
        fields[4] = fields[4].strip()
    return fields


def _shown(line: str) -> str:
    return repr(line[:_SHOWN] + ("..." if len(line) > _SHOWN else ""))
