"""What one file's scores come to: averages with 95 % intervals, from one number per scored token.

Comparisons with a reference are paired on identical tokens, and every interval is clustered (see
`intervals`). llama.cpp treats tokens as independent, which makes its "+/-" smaller; that number is
kept beside ours for comparison.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from gemcut.eval.statistics.intervals import (
    Clusters,
    Estimate,
    Values,
    estimates,
    mean,
    quantiles,
    totals,
)
from gemcut.eval.statistics.proportions import wilson
from gemcut.score import Divergence, Scores

TAILS = (0.5, 0.9, 0.99, 0.999)  # of KL divergence over tokens
_ROUNDING = 1e-12  # of the error of a share


@dataclass(frozen=True)
class Summary:
    """What one file's scores amount to. From `log_ratio` on they compare with a reference.

    perplexity: exp(mean nll).
    perplexity_error_independent: the "+/-" llama.cpp prints, tokens taken as independent.
    bits_per_byte: bits that the file needs for a byte of the scored text; unlike perplexity it can
        be compared across vocabularies. Clusters differ in bytes, too: its error is that of a
        ratio, not the perplexity's in another unit.
    log_ratio: ln(perplexity / reference's perplexity).
    kld, reverse: mean KL(reference || file) and KL(file || reference) in nats.
    tails: quantiles of kld over tokens, by share.
    same_top: share of tokens with the reference's most likely token. Where a share is the same in
        all clusters, as of what never happens, its interval is that of independent tokens (Wilson).
    lost, gained: share of tokens whose most likely token was right before, or is only now.
    rms_delta_p: root mean square change of the probability of the true token.
    """

    perplexity: Estimate
    perplexity_error_independent: float
    bits_per_byte: Estimate
    log_ratio: Estimate | None = None
    kld: Estimate | None = None
    reverse: Estimate | None = None
    tails: Mapping[float, Estimate] = field(default_factory=dict)
    same_top: Estimate | None = None
    lost: Estimate | None = None
    gained: Estimate | None = None
    rms_delta_p: Estimate | None = None


def summarise(
    scores: Scores,
    owners: Clusters,
    n_bytes: Values,
    reference: Scores | None = None,
) -> Summary:
    """Sum up scores [n_tokens] of one file, and of the reference on the same tokens.

    All of them, or those of one domain or text: where they are one cluster there is no interval
    (see `intervals`).

    Args:
        owners: the number of each token's cluster.
        n_bytes: of each token [n_tokens]; that they add up in every cluster is enough.
    """
    nll = mean(scores.nll, owners)
    perplexity = nll.over(np.exp)
    independent = float(scores.nll.std(ddof=1) / math.sqrt(scores.nll.size))
    (bits, sizes), _ = totals([scores.nll / math.log(2), n_bytes], owners)
    (per_byte,) = estimates(bits[None], sizes)
    summary = Summary(perplexity, perplexity.value * independent, per_byte)
    if reference is None or scores.divergence is None:
        return summary
    return _compared(summary, scores, scores.divergence, reference, owners)


def _compared(
    summary: Summary,
    scores: Scores,
    divergence: Divergence,
    reference: Scores,
    owners: Clusters,
) -> Summary:
    columns: list[Values] = [
        scores.nll - reference.nll,
        divergence.kld,
        divergence.reverse,
        divergence.delta_p**2,
        divergence.same_top,
        reference.correct & ~scores.correct,
        scores.correct & ~reference.correct,
    ]
    ratio, kld, reverse, square, same, lost, gained = estimates(*totals(columns, owners))
    tails = quantiles(divergence.kld, owners, TAILS)
    return replace(
        summary,
        log_ratio=ratio,
        kld=kld.within(0.0),
        reverse=reverse.within(0.0),
        tails=dict(zip(TAILS, tails, strict=True)),
        same_top=_share(same, columns[4]),
        lost=_share(lost, columns[5]),
        gained=_share(gained, columns[6]),
        rms_delta_p=square.over(_root),
    )


def _share(share: Estimate, hits: Values) -> Estimate:
    """A share of tokens with an interval, even where no cluster differs from another."""
    if share.error > _ROUNDING:
        return share.within(0.0, 1.0)
    return wilson(int(hits.sum()), len(hits))


def _root(square: float) -> float:
    return math.sqrt(max(0.0, square))
