"""Framing: what stands around a text when a model reads it.

    raw    as llama.cpp's perplexity does it: a BOS where the vocabulary wants one
    bos    with a BOS at the start of each chunk, whatever the vocabulary wants
    chat   as the model's own turn in its chat template, thoughts off; of a conversation, what the
           assistant says is scored, each turn after all that was said before it
    own    what the model itself says to prompts (`own`)

Of prose the second half of each chunk is scored. Few texts have to be two chunks long at least.
Of many, as from a .jsonl file, one that is shorter than a chunk is a chunk of its own, unless it is
so short that half of it says little: then it is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from gemcut.errors import EngineError, TextError, UsageError
from gemcut.eval.texts.chunks import MIN_CHUNKS, Chunk, Tokens, cut
from gemcut.eval.texts.dialogue import Dialogue
from gemcut.eval.texts.text import Text
from gemcut.llama import Model

RAW, BOS, CHAT, OWN = FRAMINGS = ("raw", "bos", "chat", "own")
MANY_TEXTS = 10  # enough to be documents: clusters of an error bar, and not each a long text
_LEAST_CONTEXT, _LEAST_TOKENS = 8, 32


def frame(
    vocabulary: Model,
    texts: Sequence[Text],
    framing: str,
    n_ctx: int,
    limit: int | None = None,
    parse_special: bool = False,
) -> list[Chunk]:
    """The chunks of texts, in the order of the texts.

    vocabulary: a model, which may be loaded with vocab_only. n_ctx: most tokens of a chunk.
    limit: most chunks of each text. parse_special: read "<bos>" and the like as tokens.

    Raises:
        TextError: no text, one that is too short, or fewer than two chunks altogether; under
            `chat`, a conversation in which the assistant says nothing.
        UsageError: a context too small; a framing that is none, or that the file has no BOS or
            template for.
        EngineError: the chat template is not valid.
    """
    if not texts:
        raise TextError("no text to score: name at least one text file")
    if n_ctx < _LEAST_CONTEXT:
        raise UsageError(
            f"a context of {n_ctx} is too small to score, wanted at least {_LEAST_CONTEXT}"
        )
    many = len(texts) >= MANY_TEXTS
    framed = _Framer(vocabulary, n_ctx, limit, parse_special, many).framed(framing)
    chunks = [chunk for number, text in enumerate(texts) for chunk in framed(text, number)]
    if len(chunks) < MIN_CHUNKS:
        raise TextError(
            f"{texts[0].name}: {len(chunks)} chunks in {len(texts)} texts, wanted {MIN_CHUNKS}, "
            "for an error bar; use more text or a smaller context"
        )
    return chunks


def left_out(texts: Sequence[Text], chunks: Sequence[Chunk]) -> list[Text]:
    """The texts of which nothing is scored."""
    kept = {chunk.text for chunk in chunks}
    return [text for number, text in enumerate(texts) if number not in kept]


def scored_bytes(vocabulary: Model, chunks: Sequence[Chunk]) -> int:
    """Bytes of text that the scored tokens of all chunks stand for."""
    targets = np.concatenate([chunk.targets for chunk in chunks])
    tokens, counts = np.unique(targets, return_counts=True)
    lengths = [len(vocabulary.piece(int(token), special=True)) for token in tokens]
    return int(np.dot(lengths, counts))


def answer(prompt: Sequence[int], said: Sequence[int], n_ctx: int, text: int) -> Chunk | None:
    """A chunk in which all of an answer is scored that fits; None if nothing of it does."""
    tokens = np.array([*prompt, *said], np.int32)[:n_ctx]
    if len(tokens) <= len(prompt):
        return None
    return _scored_from(tokens, len(prompt), text)


def bos_of(vocabulary: Model, framing: str) -> int | None:
    """The token that each chunk begins with. Raises UsageError: bos asked for, and none there."""
    if framing == BOS and vocabulary.bos is None:
        raise UsageError(f"{vocabulary.path}: its vocabulary has no BOS; frame the text raw")
    return vocabulary.bos if framing == BOS or vocabulary.add_bos else None


@dataclass(frozen=True)
class _Framer:
    """Frames one text after another; `many`: there are many of them."""

    vocabulary: Model
    n_ctx: int
    limit: int | None
    special: bool
    many: bool

    def framed(self, framing: str) -> Callable[[Text, int], list[Chunk]]:
        """A function of a text and its number."""
        if framing == CHAT:
            dialogue = Dialogue(self.vocabulary)
            return partial(self._turns, dialogue, dialogue.opening())
        if framing not in (RAW, BOS):
            raise UsageError(f"no framing {framing!r} of a text: raw, bos, chat")
        return partial(self._plain, bos_of(self.vocabulary, framing))

    def _plain(self, bos: int | None, text: Text, number: int) -> list[Chunk]:
        tokens = self.vocabulary.tokenize(text.content, True, self.special)
        rows = self._cut(tokens, self.n_ctx, bos, text.name)
        return [_scored_from(row, len(row) // 2 + 1, number) for row in rows]

    def _turns(self, dialogue: Dialogue, opening: list[int], text: Text, n: int) -> list[Chunk]:
        if text.messages:
            return self._conversation(dialogue, text, n)
        if len(opening) > self.n_ctx // 2:
            raise UsageError(
                f"the chat template takes {len(opening)} tokens, more than half of a context of "
                f"{self.n_ctx}: use one of at least {2 * len(opening)}"
            )
        tokens = self.vocabulary.tokenize(text.content, False, self.special)
        rows = self._cut(tokens, self.n_ctx - len(opening), None, text.name)
        framed = [np.array([*opening, *row], np.int32) for row in rows]
        return [_scored_from(row, max(len(row) // 2, len(opening)) + 1, n) for row in framed]

    def _conversation(self, dialogue: Dialogue, text: Text, number: int) -> list[Chunk]:
        """A chunk for each turn of the assistant for which a context has room."""
        if not text.is_answered:
            raise TextError(
                f"{text.name}: the assistant says nothing in it that could be scored; "
                "let the reference answer (own), or score it raw"
            )
        turns = [at for at, (role, _) in enumerate(text.messages) if role == "assistant"]
        try:
            found = [self._answer(dialogue, text, at, number) for at in turns]
        except EngineError as error:
            raise TextError(f"{text.name}: {error}") from error
        chunks = [chunk for chunk in found if chunk is not None]
        if not chunks and not self.many:
            raise TextError(
                f"{text.name}: what is said before the first answer fills a context of "
                f"{self.n_ctx}; use a larger one"
            )
        return chunks[: self.limit]

    def _answer(self, dialogue: Dialogue, text: Text, at: int, number: int) -> Chunk | None:
        said = self.vocabulary.tokenize(text.messages[at][1].strip(), False, self.special)
        whole = [*said.tolist(), *dialogue.ending(text.messages[: at + 1])]
        return answer(dialogue.opening(text.messages[:at]), whole, self.n_ctx, number)

    def _cut(self, tokens: Tokens, n: int, bos: int | None, name: str) -> Sequence[Tokens]:
        """Rows of n tokens or, of a short one of many texts, all of it, if it is not too short."""
        if not self.many or len(tokens) >= MIN_CHUNKS * n:
            return list(cut(tokens, n, self.limit, bos, name))
        if len(tokens) < min(_LEAST_TOKENS, n):
            return []
        row = tokens[:n].copy()
        if bos is not None:
            row[0] = bos
        return [row]


def _scored_from(tokens: Tokens, first: int, text: int) -> Chunk:
    """A chunk whose tokens are scored from the one at `first` to the end."""
    outputs = np.zeros(len(tokens), np.bool_)
    outputs[first - 1 : len(tokens) - 1] = True
    return Chunk(tokens, outputs, text)
