"""Built-in calibration text, for who has none: prose, code, languages, data and conversations.

Prose and code are those of the standard library that this Python was installed with, so the text
is the same for a version of Python, and nothing is downloaded. It serves to try things out. What a
model is to be used for is the better text: its importance, and which experts it reaches, are then
those of the real work.

Importance, the probe and the validation must not be of one text, or each would confirm the others.
Every module, topic and sentence is therefore dealt to one of the three uses, and so are the blocks
of a user's own text.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from random import Random
from typing import Literal, TypeVar
from zlib import crc32

from gemcut.demo.text import questions, training_sources
from gemcut.errors import EngineError
from gemcut.quantize.phrases import LANGUAGES, NAMES, PLACES, Language
from gemcut.runtime.language.template import Message, Template

Use = Literal["importance", "probe", "validation"]
T = TypeVar("T")

NAME = "gemcut-calibration"
SIZE = 400_000  # characters: about 100 000 tokens, 200 chunks of 512
_PASSAGE = 1600  # characters, about a chunk's
_ORDER = ("prose", "code", "languages", "talk", "prose", "code", "talk", "data")
# Eight hands, of which importance gets the most: it has to reach every expert.
_I: Use = "importance"
_HANDS: tuple[Use, ...] = (_I, "validation", _I, "probe", _I, "validation", _I, _I)
_SPOKEN: tuple[Use, ...] = (_I, "probe", "validation", _I)  # of a language's few sentences
_BLOCK = 4000  # characters of a user's text that stay together


def calibration_text(
    template: Template | None = None, size: int = SIZE, seed: int = 1, use: Use = "importance"
) -> str:
    """About so many characters of mixed text; any beginning of it has some of every kind.

    Args:
        template: the model's, which frames the conversations; its special tokens are written out.
        use: texts for two uses have no source in common, whatever their seeds.
    """
    random = Random(f"{use} {seed}")
    sources = [source for source in training_sources() if _hand(crc32(source.encode())) == use]
    random.shuffle(sources)
    languages = _spoken(use)
    kinds: dict[str, Iterator[str]] = {
        "prose": _prose(random, use),
        "code": _code(random, sources),
        "languages": _languages(random, languages),
        "talk": _talk(random, sources, languages, template),
        "data": _data(random),
    }
    passages: list[str] = []
    for kind in cycle(_ORDER):
        passages.append(next(kinds[kind]))
        size -= len(passages[-1])
        if size <= 0:
            return "\n\n".join(passages)
    raise AssertionError("a cycle does not end")


def dealt(text: str, use: Use) -> str:
    """A user's text for one use: blocks from all over it, which no other use gets."""
    size = max(1, min(_BLOCK, len(text) // (4 * len(_HANDS))))
    blocks = [text[start : start + size] for start in range(0, len(text), size)]
    return "".join(_of(blocks, use))


def _hand(number: int) -> Use:
    return _HANDS[number % len(_HANDS)]


def _of(pieces: Sequence[T], use: Use, first: int = 0, hands: Sequence[Use] = _HANDS) -> list[T]:
    """Those that are dealt to a use, when the hands are counted from `first`."""
    return [each for n, each in enumerate(pieces, first) if hands[n % len(hands)] == use]


def _spoken(use: Use) -> list[Language]:
    """The languages, with the sentences that a use gets of each."""
    return [
        Language(
            tuple(_of(language.statements, use, 0, _SPOKEN)),
            tuple(_of(language.exchanges, use, number, _SPOKEN)),
        )
        for number, (_, language) in enumerate(sorted(LANGUAGES.items()))
    ]


def _prose(random: Random, use: Use) -> Iterator[str]:
    """Passages of the language reference that `help()` shows."""
    topics = _topics(use)
    while True:
        paragraphs = random.choice(topics)
        start = random.randrange(len(paragraphs))
        yield _filled(iter(paragraphs[start:]), "\n\n")


def _topics(use: Use) -> list[list[str]]:
    """A use's topics as paragraphs; what several topics have belongs to the first of them."""
    from pydoc_data.topics import topics

    owner: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            owner.setdefault(paragraph, name)
    found: dict[str, list[str]] = {}
    for paragraph, name in owner.items():
        found.setdefault(name, []).append(paragraph)
    return [found[name] for name in sorted(found) if _hand(crc32(name.encode())) == use]


def _code(random: Random, sources: list[str]) -> Iterator[str]:
    while True:
        lines = random.choice(sources).splitlines()
        start = random.randrange(max(1, len(lines) - 20))
        yield _filled(iter(lines[start:]), "\n")


def _languages(random: Random, languages: list[Language]) -> Iterator[str]:
    while True:
        language = random.choice(languages)
        fill = _gaps(random)
        yield _filled((fill(random.choice(language.statements)) for _ in range(40)), " ")


def _talk(
    random: Random, sources: list[str], languages: list[Language], template: Template | None
) -> Iterator[str]:
    known = (pair for source in sources for pair in questions(source))
    exchanges = [pair for language in languages for pair in language.exchanges]
    while True:
        pairs = [pair for pair, _ in zip(known, range(2), strict=False)]
        fill = _gaps(random)
        asked, answer = random.choice(exchanges)
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
