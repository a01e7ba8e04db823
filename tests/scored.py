"""Columns and chunks of the demo's model, small enough to be scored in a moment."""

from pathlib import Path

import numpy as np

from gemcut.demo.text import held_out_text
from gemcut.engine import ContextOptions, ModelOptions
from gemcut.eval.files import select
from gemcut.eval.scoring.column import CANDIDATE, REFERENCE, Column
from gemcut.eval.texts.chunks import Chunk, cut, half_scored
from gemcut.llama import Context, Model
from gemcut.score import Scores, score

N_CTX, N_SCORED = 64, 31  # of a chunk


def columns(*paths: Path, reference: bool = True) -> list[Column]:
    """One for each file, the first being the reference."""
    roles = [REFERENCE if reference else CANDIDATE, *[CANDIDATE] * len(paths)]
    return [Column(file, role) for file, role in zip(select(paths, None), roles, strict=False)]


def some_chunks(path: Path, count: int, n_ctx: int = N_CTX) -> list[Chunk]:
    """Of the held-out text."""
    with Model.load(path, ModelOptions(vocab_only=True)) as vocabulary:
        tokens = vocabulary.tokenize(held_out_text()[: 20 * n_ctx * count])
        return half_scored(cut(tokens, n_ctx, count, vocabulary.bos, "held-out"))


def logits(path: Path, chunks: list[Chunk]) -> list[np.ndarray]:
    """Of every scored position, each chunk read from an empty context."""
    with (
        Model.load(path) as model,
        Context(model, ContextOptions(n_ctx=len(chunks[0].tokens), threads=1)) as context,
    ):
        found = []
        for chunk in chunks:
            context.forget()
            found.append(context.decode(chunk.tokens)[chunk.outputs].copy())
    return found


def expected(reference: Path, candidate: Path, chunks: list[Chunk]) -> list[Scores]:
    """Scores of a candidate on each chunk, out of whole arrays of logits."""
    pairs = zip(chunks, logits(reference, chunks), logits(candidate, chunks), strict=True)
    return [score(chunk.targets, [other], base)[1] for chunk, base, other in pairs]


def assert_same(a, b, atol: float = 0.0) -> None:
    """That two scores are alike, token by token."""
    np.testing.assert_allclose(a.nll, b.nll, rtol=0, atol=atol)
    np.testing.assert_allclose(a.divergence.kld, b.divergence.kld, rtol=0, atol=atol)
    np.testing.assert_allclose(a.divergence.reverse, b.divergence.reverse, rtol=0, atol=atol)
    np.testing.assert_allclose(a.divergence.delta_p, b.divergence.delta_p, rtol=0, atol=atol)
    assert (a.correct == b.correct).all()
    assert (a.divergence.same_top == b.divergence.same_top).all()
