"""Rows of logits in 16 bits a number, as llama.cpp's .kld files hold them.

A row is uint16: float32 scale and float32 least (two uint16 each), q[n_vocab], and one more without
meaning where n_vocab is odd. The log-probability of a token is scale * q + least.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from gemcut.score import Logits

Packed = NDArray[np.uint16]

_HEAD = 4  # uint16 before the numbers
_STEPS = 65535
LARGEST = np.finfo(np.float32).max / _STEPS  # step, whose multiples are numbers
_LEAST = np.finfo(np.float32).tiny  # of a step: one over less is infinite
_BLOCK = 1 << 17  # numbers at once: larger blocks leave the caches of a small machine


def row_words(n_vocab: int) -> int:
    """The length of a row in uint16."""
    return 2 * ((n_vocab + 1) // 2) + _HEAD


def pack(logits: Logits, clamp: float, threads: int = 1) -> Packed:
    """Rows [n, row_words] of finite logits [n, n_vocab]; llama.cpp's arithmetic.

    clamp: what is further below a row's largest logit is raised to that. Steps are a 65535th of
        the range that is left.
    """
    rows = np.zeros((len(logits), row_words(logits.shape[1])), "<u2")
    _each(logits.shape, threads, lambda block: _pack(logits[block], clamp, rows[block]))
    return rows


def unpack(rows: Packed, n_vocab: int, out: Logits | None = None, threads: int = 1) -> Logits:
    """Log-probabilities float32 [n, n_vocab] of rows; into `out` where it has that shape."""
    shape = len(rows), n_vocab
    found = out if out is not None and out.shape == shape else np.empty(shape, np.float32)
    _each(shape, threads, lambda block: _unpack(rows[block], found[block]))
    return found


def _pack(logits: Logits, clamp: float, rows: Packed) -> None:
    largest = logits.max(axis=1, keepdims=True)
    least = np.maximum(logits.min(axis=1, keepdims=True), largest - np.float32(clamp))
    shifted = logits - largest
    total = np.exp(shifted, out=shifted).sum(axis=1, dtype=np.float64, keepdims=True)
    scale = (largest - least) / np.float32(_STEPS)
    log_total = np.log(total).astype(np.float32)
    rows[:, :_HEAD] = np.hstack([scale, least - largest - log_total]).astype("<f4").view("<u2")
    np.subtract(logits, least, out=shifted)
    shifted *= np.divide(1, scale, out=np.zeros_like(scale), where=scale > _LEAST)
    np.clip(np.rint(shifted, out=shifted), 0, _STEPS, out=shifted)
    rows[:, _HEAD : _HEAD + logits.shape[1]] = shifted


def _unpack(rows: Packed, out: Logits) -> None:
    head = np.ascontiguousarray(rows[:, :_HEAD]).view("<f4")
    np.multiply(rows[:, _HEAD : _HEAD + out.shape[1]], head[:, :1], out=out, dtype=np.float32)
    out += head[:, 1:]


def _each(shape: tuple[int, ...], threads: int, work: Callable[[slice], None]) -> None:
    """Work on a few rows at a time; numpy lets go of the interpreter meanwhile."""
    count, rows = shape[0], max(1, _BLOCK // shape[1])
    blocks = [slice(start, start + rows) for start in range(0, count, rows)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, blocks):  # raises what the work raised
            pass
