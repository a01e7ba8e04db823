"""Whether perplexity means anything for a model on a text: the same words in several framings.

Instruction-tuned models may have learned to speak in their own turn alone. Such a model gives a
perplexity of thousands on raw prose and of tens on the same prose as its own turn, and a KL
divergence between two files of it is then measured where the model never goes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite, log2
from pathlib import Path

import numpy as np

from gemcut.engine import ContextOptions, ModelOptions
from gemcut.errors import EngineError, UsageError
from gemcut.eval.texts.chunks import Chunk, Tokens, half_scored
from gemcut.eval.texts.dialogue import Dialogue
from gemcut.eval.texts.framing import BOS, CHAT, OWN, RAW, bos_of, scored_bytes
from gemcut.eval.texts.text import Text
from gemcut.llama import Context, Model
from gemcut.score import score

_ROW, _ROWS = 256, 2  # tokens that are read, and how often
_LEAST_ROW = 8
_MOST_CHARACTERS = 1 << 14  # of a text that are tokenised for it
_MOST_OPENING = 1 << 10
_MUCH = 2.0  # as many times the perplexity of another framing: this one makes no sense
_BOS_SHOWS = 1.2
_MOST_BITS = 4.0  # per byte: how often each letter occurs in a language tells more
_USE = {
    RAW: "the model continues plain text better than it answers with it; use --framing raw",
    BOS: "the model expects a BOS that the file does not ask for; use --framing bos",
    CHAT: "the model speaks in its own turn alone, so that on such text KL divergence measures "
    "differences where it never goes; use --framing chat, or --framing own",
}
_NOTHING = (
    "the model makes nothing of this text in any framing; use text in a language that it knows, or "
    "--framing own"
)


@dataclass(frozen=True)
class Diagnosis:
    """Perplexity of one piece of text by framing, and what follows from it.

    perplexities: by framing (raw, bos, chat); a framing that does not apply, or is the same as
        raw, is left out.
    advice: what to do, in a sentence or two; "" where the framing in use is fine.
    """

    framing: str  # the one in use
    perplexities: Mapping[str, float]
    is_chat: bool  # the file has a chat template
    meaningless: bool  # whether the framing in use makes no sense for this model
    advice: str = ""


def diagnose(
    path: Path,
    texts: Sequence[Text],
    framing: str,
    options: ModelOptions | None = None,
    threads: int | None = None,
    parse_special: bool = False,
) -> Diagnosis:
    """Read a little of the texts in each framing that a file allows: a handful of decodes.

    The same tokens are scored in each: they are the second half of at most two rows of 256.
    Conversations as such, and own answers, are framed as the model is used: nothing is read.

    Raises:
        EngineError: the file cannot be loaded, or run.
    """
    with Model.load(path, options) as model:
        is_chat = bool(model.chat_template)
        rows = _rows(model, texts, parse_special)
        spoken = framing == OWN or (framing == CHAT and all(text.messages for text in texts))
        if spoken or rows.shape[1] < _LEAST_ROW:
            return Diagnosis(framing, {}, is_chat, False)
        framed = _framings(model, rows)
        longest = max(len(chunk.tokens) for chunks in framed.values() for chunk in chunks)
        sizes = ContextOptions(longest, n_ubatch=longest, threads=threads, n_outputs=_ROW)
        with Context(model, sizes) as context:
            found = {name: _perplexity(context, chunks) for name, chunks in framed.items()}
        bytes_per_token = scored_bytes(model, framed[RAW]) / sum(c.n_scored for c in framed[RAW])
    found = {name: value for name, value in found.items() if isfinite(value)}
    return judged(framing, found, is_chat, bytes_per_token)


def judged(
    framing: str, perplexities: Mapping[str, float], is_chat: bool, bytes_per_token: float
) -> Diagnosis:
    """What perplexities say of the framing in use."""
    used = perplexities.get(framing, perplexities.get(RAW))
    if used is None:  # scoring will find what is wrong with the logits
        return Diagnosis(framing, perplexities, is_chat, False)
    best = min(perplexities, key=lambda name: perplexities[name])
    least = perplexities[best]
    worse = f"perplexity {_shown(used)} framed {framing}, {_shown(least)} framed {best}: "
    without_bos = framing == RAW and used > _BOS_SHOWS * perplexities.get(BOS, used)
    if log2(max(least, 1)) > _MOST_BITS * bytes_per_token:
        advice = f"perplexity {_shown(least)} at best, framed {best}: {_NOTHING}"
        return Diagnosis(framing, perplexities, is_chat, True, advice)
    if used > _MUCH * least:
        return Diagnosis(framing, perplexities, is_chat, True, worse + _USE[best])
    if without_bos:
        worse = f"perplexity {_shown(used)} without a BOS, {_shown(perplexities[BOS])} with one: "
        return Diagnosis(framing, perplexities, is_chat, False, worse + _USE[BOS])
    return Diagnosis(framing, perplexities, is_chat, False)


def _rows(model: Model, texts: Sequence[Text], special: bool) -> Tokens:
    """The beginning of the texts: tokens [rows, tokens of a row]."""
    tokens = np.empty(0, np.int32)
    for text in texts:
        if len(tokens) < _ROW * _ROWS:
            more = model.tokenize(text.content[:_MOST_CHARACTERS], False, special)
            tokens = np.concatenate([tokens, more])
    n_rows = min(max(len(tokens) // _ROW, 1), _ROWS)
    return tokens[: n_rows * _ROW].reshape(n_rows, -1)


def _framings(model: Model, rows: Tokens) -> dict[str, list[Chunk]]:
    """The rows in each framing that the model has; the same tokens are scored in all of them."""
    found = {RAW: half_scored(_with(rows, bos_of(model, RAW)))}
    if model.bos is not None and not model.add_bos:
        found[BOS] = half_scored(_with(rows, model.bos))
    try:
        opening = Dialogue(model).opening()
    except (UsageError, EngineError):  # no template, or one that refuses
        return found
    if len(opening) <= _MOST_OPENING:
        found[CHAT] = [_after(opening, chunk) for chunk in half_scored(rows)]
    return found


def _with(rows: Tokens, bos: int | None) -> Tokens:
    rows = rows.copy()
    if bos is not None:
        rows[:, 0] = bos
    return rows


def _after(opening: Sequence[int], chunk: Chunk) -> Chunk:
    """A chunk behind some tokens that are not scored."""
    tokens = np.array([*opening, *chunk.tokens], np.int32)
    return Chunk(tokens, np.concatenate([np.zeros(len(opening), np.bool_), chunk.outputs]))


def _perplexity(context: Context, chunks: Sequence[Chunk]) -> float:
    nll = []
    for chunk in chunks:
        context.forget()
        logits = context.decode(chunk.tokens, outputs=chunk.outputs)
        nll.append(score(chunk.targets, [logits])[0].nll)
    return exp(min(float(np.concatenate(nll).mean()), 700.0))


def _shown(perplexity: float) -> str:
    return f"{perplexity:,.0f}" if perplexity >= 100 else f"{perplexity:.3g}"
