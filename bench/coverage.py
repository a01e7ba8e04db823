"""How often the 95 % intervals contain the truth: resamples of whole documents of a text.

    PYTHONPATH=. python bench/coverage.py FILE --reference REF [--resamples 2000]

The held-out modules of the demo's text are the population, what all of them give is the truth.
Every resample draws as many modules, with replacement, and makes of them what `gemcut eval` would;
beside it stands the interval that takes tokens as independent, as llama.cpp's "+/-" does.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gemcut.demo.text import HELD_OUT, library
from gemcut.eval.compare import compare
from gemcut.eval.intervals import mean
from gemcut.eval.texts import Text
from gemcut.score import Floats

_NORMAL = 1.959964


def main() -> None:
    """Print the coverage of each statistic."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--n-ctx", type=int, default=512)
    arguments = parser.parse_args()
    values, owners = _scored(arguments.file, arguments.reference, arguments.n_ctx)
    documents = int(owners.max()) + 1
    print(f"{documents} documents, {len(owners)} chunks, {arguments.resamples} resamples")
    for name, each in values.items():
        own, tokens = _coverage(each, owners, arguments.resamples)
        print(f"{name:14} clustered {100 * own:5.1f} %   tokens alone {100 * tokens:5.1f} %")


def _scored(
    file: Path, reference: Path, n_ctx: int
) -> tuple[dict[str, Floats], "np.ndarray[tuple[int], np.dtype[np.int64]]"]:
    """Values [n_chunks, n] of each statistic, and the document of every chunk."""
    paths = [library() / name for name in HELD_OUT]
    texts = [Text.read(path) for path in paths if path.is_file()]
    by_text = [compare([file], reference, [text], n_ctx) for text in texts]
    owners = np.repeat(np.arange(len(texts)), [each.protocol.n_chunks for each in by_text])

    def joined(of: Callable[..., Floats]) -> Floats:
        return np.concatenate([of(*(row.scores for row in each.rows)) for each in by_text])

    return {
        "mean KLD": joined(lambda base, one: one.divergence.kld),
        "ln PPL ratio": joined(lambda base, one: one.nll - base.nll),
        "same top": joined(lambda base, one: one.divergence.same_top.astype(float)),
    }, owners


def _coverage(values: Floats, owners: np.ndarray, resamples: int) -> tuple[float, float]:
    """The share of resamples whose interval holds the truth: ours, and that of tokens."""
    documents = [np.flatnonzero(owners == each) for each in range(int(owners.max()) + 1)]
    truth, random = float(values.mean()), np.random.default_rng(0)
    # All chunks are of one length, so their means tell what the tokens would.
    means, squares = values.mean(axis=1, keepdims=True), (values**2).mean(axis=1)
    own = tokens = 0
    for _ in range(resamples):
        drawn = random.integers(0, len(documents), len(documents))
        rows = np.concatenate([documents[each] for each in drawn])
        clusters = np.repeat(np.arange(len(drawn)), [len(documents[each]) for each in drawn])
        found = mean(means[rows], clusters)
        own += found.low <= truth <= found.high
        spread = math.sqrt(squares[rows].mean() - found.value**2)
        reach = _NORMAL * spread / math.sqrt(len(rows) * values.shape[1])
        tokens += abs(found.value - truth) <= reach
    return own / resamples, tokens / resamples


if __name__ == "__main__":
    main()
