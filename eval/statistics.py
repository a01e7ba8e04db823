"""Averages with honest error bars, from one number per scored token.

Tokens of one chunk share their text and are not independent, so every standard error is clustered
by chunk; comparisons with a reference are paired on identical tokens (Miller, "Adding Error Bars
to Evals", arXiv 2411.00640). llama.cpp treats tokens as independent, which makes its "+/-" smaller;
that number is kept beside ours for comparison.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gemcut.score import Divergence, Floats, Scores


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error (one sigma)."""

    value: float
    error: float


@dataclass(frozen=True)
class Summary:
    """What one file's scores amount to. The last six compare with a reference, if there is one.

    perplexity: exp(mean nll); its error is perplexity * error of the mean (first order).
    perplexity_error_independent: the "+/-" llama.cpp prints, tokens taken as independent.
    log_ratio: ln(perplexity / reference's perplexity), paired.
    kld: mean KL(reference || file) in nats; kld_median and kld_p99 are over tokens.
    same_top: share of tokens with the reference's most likely token.
    rms_delta_p: root mean square change of the probability of the true token.
    """

    perplexity: Estimate
    perplexity_error_independent: float
    log_ratio: Estimate | None = None
    kld: Estimate | None = None
    kld_median: float | None = None
    kld_p99: float | None = None
    same_top: Estimate | None = None
    rms_delta_p: float | None = None


def mean_by_chunk(values: NDArray[np.floating | np.bool_]) -> Estimate:
    """Mean of values [n_chunks, n] with a standard error clustered by chunk.

    With chunks of equal length the cluster-robust error is that of the chunk means:
    sd(chunk means) / sqrt(n_chunks).
    """
    means = values.mean(axis=1, dtype=np.float64)
    return Estimate(float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means))))


def summarise(scores: Scores, reference: Scores | None = None) -> Summary:
    """Sum up scores [n_chunks, n] of one file, and of the reference on the same tokens."""
    nll = mean_by_chunk(scores.nll)
    value = float(np.exp(nll.value))
    independent = float(scores.nll.std(ddof=1) / np.sqrt(scores.nll.size))
    perplexity = Estimate(value, value * nll.error)
    if reference is None or scores.divergence is None:
        return Summary(perplexity, value * independent)
    return _compared(perplexity, value * independent, scores.nll - reference.nll, scores.divergence)


def _compared(
    perplexity: Estimate, independent: float, delta_nll: Floats, divergence: Divergence
) -> Summary:
    median, p99 = np.quantile(divergence.kld, [0.5, 0.99])
    return Summary(
        perplexity,
        independent,
        log_ratio=mean_by_chunk(delta_nll),
        kld=mean_by_chunk(divergence.kld),
        kld_median=float(median),
        kld_p99=float(p99),
        same_top=mean_by_chunk(divergence.same_top),
        rms_delta_p=float(np.sqrt(np.mean(divergence.delta_p**2))),
    )
