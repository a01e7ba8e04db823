"""What is scored: texts as chunks of tokens, with the protocol that they are scored by."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gemcut.cores import default_threads
from gemcut.engine import ModelOptions
from gemcut.errors import EngineError
from gemcut.eval.answered import answers
from gemcut.eval.assemble import Sizes, covering
from gemcut.eval.comparison import Protocol
from gemcut.eval.files import File
from gemcut.eval.scope import Means, Scope
from gemcut.eval.scoring.column import Column
from gemcut.eval.scoring.fitting import placed
from gemcut.eval.scoring.kld_file import KldFile, KldReference
from gemcut.eval.scoring.worker import apart
from gemcut.eval.texts import own
from gemcut.eval.texts.chunks import Chunk
from gemcut.eval.texts.framing import CHAT, OWN, RAW, bos_of, frame, left_out, scored_bytes
from gemcut.eval.texts.text import Text
from gemcut.llama import Model


@dataclass(frozen=True)
class Material:
    """Chunks with the bytes of the scored tokens of each.

    base: log-probabilities of a reference, where the chunks are those of a .kld file.
    """

    protocol: Protocol
    chunks: Sequence[Chunk]
    sizes: Sizes
    base: KldReference | None = None
    notes: tuple[str, ...] = ()


def of_texts(
    file: File,
    texts: Sequence[Text],
    n_ctx: int,
    limit: int | None,
    scope: Scope,
    means: Means,
) -> Material:
    """Texts as a file reads them; of prompts, under `own`, its answers.

    Args:
        limit: most chunks of each text.

    Raises:
        TextError, UsageError, EngineError: see `texts.framing.frame`, `answered.answers`.
    """
    framing = scope.framing
    if framing == OWN:
        texts, chunks = _answered(file, texts, n_ctx, limit, means)
    with Model.load(file.path, ModelOptions(vocab_only=True)) as vocabulary:
        if framing != OWN:
            chunks = frame(vocabulary, texts, framing, n_ctx, limit, scope.parse_special)
        bos = None if framing in (CHAT, OWN) else bos_of(vocabulary, framing)
        sizes = _sizes(vocabulary, chunks)
    missing = len(left_out(texts, chunks))
    note = f"{missing} of {len(texts)} texts are too short to be scored"
    protocol = _protocol(n_ctx, framing, bos, means, texts)
    return Material(
        covering(protocol, chunks, sizes), chunks, sizes, notes=(note,) if missing else ()
    )


def of_base(file: File, path: Path, limit: int | None, means: Means) -> Material:
    """The text of one of llama.cpp's files of log-probabilities, which stand for a reference.

    Args:
        file: of which the vocabulary is.
        limit: most chunks.

    Raises:
        TextError: no such file, or damaged.
        EngineError: it is of another vocabulary.
    """
    known = KldFile.read(path)
    with Model.load(file.path, ModelOptions(vocab_only=True)) as vocabulary:
        if known.n_vocab != vocabulary.n_vocab:
            raise EngineError(
                f"{path}: of a vocabulary of {known.n_vocab} tokens, {file.name} has "
                f"{vocabulary.n_vocab}: save it from a file of the same checkpoint"
            )
        bos = bos_of(vocabulary, RAW)
        base = KldReference(known, bos, means.threads or default_threads())
        chunks = base.chunks[:limit]
        sizes = _sizes(vocabulary, chunks)
    with open(path, "rb") as raw:
        text = Text(path.name, "", file_digest(raw, "sha256").hexdigest(), path.stat().st_size)
    protocol = _protocol(known.tokens.shape[1], RAW, bos, means, [text])
    note = (
        f"{path.name} cut the reference's logits off 16 below the largest: its perplexity is too "
        "low, and tokens of no more than e^-16 are not in KLD, as in llama-perplexity"
    )
    return Material(covering(protocol, chunks, sizes), chunks, sizes, base, (note,))


def _answered(
    file: File, texts: Sequence[Text], n_ctx: int, limit: int | None, means: Means
) -> tuple[list[Text], list[Chunk]]:
    asked, told = own.prompts(texts, limit), partial(means.progress, "answering")
    options = placed([Column(file)], n_ctx, 1, means.threads)[file.path]
    run = partial(apart, file.name, answers) if means.isolated else answers
    said = run(file, asked, n_ctx, options, means.threads, progress=told)
    return [answer.text for answer in said], own.framed(said, n_ctx)


def _sizes(vocabulary: Model, chunks: Sequence[Chunk]) -> Sizes:
    return np.array([scored_bytes(vocabulary, [chunk]) for chunk in chunks])


def _protocol(
    n_ctx: int, framing: str, bos: int | None, means: Means, texts: Sequence[Text]
) -> Protocol:
    engine = f"llama-cpp-python {version('llama-cpp-python')}"
    return Protocol(n_ctx, framing, bos, means.threads or default_threads(), engine, tuple(texts))
