"""Built-in calibration text, for who has none: prose, code, languages, data and conversations.

Prose and code are those of the standard library that this Python was installed with, so the text
is the same for a version of Python, and nothing is downloaded. It serves to try things out. What a
model is to be used for is the better text: its importance, and which experts it reaches, are then
those of the real work.
"""

import json
from collections.abc import Callable, Iterator
from itertools import cycle
from random import Random

from gemcut.demo.text import questions, training_sources
from gemcut.errors import EngineError
from gemcut.quantize.phrases import LANGUAGES, NAMES, PLACES, Language
from gemcut.runtime.template import Message, Template

NAME = "gemcut-calibration"
SIZE = 400_000  # characters: about 100 000 tokens, 200 chunks of 512
_PASSAGE = 1600  # characters, about a chunk's
_ORDER = ("prose", "code", "languages", "talk", "prose", "code", "talk", "data")


def calibration_text(template: Template | None = None, size: int = SIZE, seed: int = 1) -> str:
    """About so many characters of mixed text; any beginning of it has some of every kind.

    Args:
        template: the model's, which frames the conversations; its special tokens are written out.
    """
    random = Random(seed)
    sources = list(training_sources())
    random.shuffle(sources)
    kinds: dict[str, Iterator[str]] = {
        "prose": _prose(random),
        "code": _code(random, sources),
        "languages": _languages(random),
        "talk": _talk(random, sources, template),
        "data": _data(random),
    }
    passages: list[str] = []
    for kind in cycle(_ORDER):
        passages.append(next(kinds[kind]))
        size -= len(passages[-1])
        if size <= 0:
            return "\n\n".join(passages)
    raise AssertionError("a cycle does not end")


def _prose(random: Random) -> Iterator[str]:
    """Passages of the language reference that `help()` shows."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    while True:
        paragraphs = topics[random.choice(names)].split("\n\n")
        start = random.randrange(len(paragraphs))
        yield _filled(iter(paragraphs[start:]), "\n\n")


def _code(random: Random, sources: list[str]) -> Iterator[str]:
    while True:
        lines = random.choice(sources).splitlines()
        start = random.randrange(max(1, len(lines) - 20))
        yield _filled(iter(lines[start:]), "\n")


def _languages(random: Random) -> Iterator[str]:
    names = sorted(LANGUAGES)
    while True:
        language = LANGUAGES[random.choice(names)]
        fill = _gaps(random)
        yield _filled((fill(random.choice(language.statements)) for _ in range(40)), " ")


def _talk(random: Random, sources: list[str], template: Template | None) -> Iterator[str]:
    known = (pair for source in sources for pair in questions(source))
    names = sorted(LANGUAGES)
    while True:
        pairs = [pair for pair, _ in zip(known, range(2), strict=False)]
        language: Language = LANGUAGES[random.choice(names)]
        fill = _gaps(random)
        asked, answer = random.choice(language.exchanges)
        pairs.append((fill(asked), fill(answer)))
        random.shuffle(pairs)
        yield _framed(pairs, template)


def _framed(pairs: list[tuple[str, str]], template: Template | None) -> str:
    """A conversation as the model's template writes it, or plainly if it has or takes none."""
    messages: list[Message] = []
    for asked, answer in pairs:
        messages += [Message(role="user", content=asked), Message(role="assistant", content=answer)]
    if template is not None:
        try:
            return template.render(messages, answer=False)
        except EngineError:
            pass
    return "\n\n".join(f"{each['role'].title()}: {each['content']}" for each in messages)


def _data(random: Random) -> Iterator[str]:
    """Records as JSON, a table, and sums."""
    while True:
        records = [
            {
                "id": random.randrange(10_000),
                "name": random.choice(NAMES),
                "place": random.choice(PLACES),
                "score": round(random.uniform(0, 100), 2),
                "active": random.random() < 0.5,
            }
            for _ in range(6)
        ]
        table = "\n".join("| " + " | ".join(map(str, each.values())) + " |" for each in records)
        sums = "\n".join(_gaps(random)("{n} + {m} = {sum}") for _ in range(10))
        yield "\n\n".join([json.dumps(records[:3], indent=2, ensure_ascii=False), table, sums])


def _gaps(random: Random) -> Callable[[str], str]:
    """Fills the gaps of sentences that belong together, all with the same."""
    n, m = random.randrange(2, 1000), random.randrange(2, 24)
    values = {
        "n": n,
        "m": m,
        "sum": n + m,
        "year": random.randrange(1850, 2030),
        "name": random.choice(NAMES),
        "place": random.choice(PLACES),
    }
    return lambda sentence: sentence.format(**values)


def _filled(pieces: Iterator[str], between: str) -> str:
    """Pieces up to the length of a passage."""
    taken: list[str] = []
    length = 0
    for piece in pieces:
        taken.append(piece)
        length += len(piece) + len(between)
        if length >= _PASSAGE:
            break
    return between.join(taken)
