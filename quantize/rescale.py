"""From predicted to expected KL divergence: what finished files were found to lose corrects it.

A prediction is a sum of what single tensors cost. Real files lose somewhat more or less: errors of
tensors add up unevenly, and any change at all sends near ties to other experts, which costs a floor
that no prediction holds. Both are the same for all files of a model, nearly, so

    expected = floor + scale x predicted

is fitted to files that were scored; with a single one, the scale alone. Never does a file of less
predicted loss become one of more expected loss.
"""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gemcut.errors import UsageError
from gemcut.plan import Measured

Pair = tuple[float, float, float]  # KL divergence predicted and measured, its standard error

_DOUBT = 0.05  # relative: the line holds no better than this, however long the text was
_LEAST = 0.1  # scale, relative to that of the line through zero: losses must tell files apart
_ALIKE = 1e-6  # relative difference of predictions that tell nothing about a slope


@dataclass(frozen=True)
class Rescale:
    """The line from predicted to expected KL divergence; without any measurement the identity."""

    floor: float = 0.0
    scale: float = 1.0

    def expected(self, predicted: float) -> float:
        """The KL divergence to expect of a file with this prediction."""
        return self.floor + self.scale * predicted


def pairs_of(measured: Iterable[Measured]) -> list[Pair]:
    """What was measured of files that had a prediction."""
    return [(m.predicted, m.kld, m.se) for m in measured if m.predicted is not None]


def rescale(pairs: Sequence[Pair]) -> Rescale:
    """The line through pairs, by weighted least squares of relative deviations.

    The floor is never negative, nor the scale so small that predictions hardly mattered. Files
    without any predicted loss say nothing about the scale, and those of which no loss was measured
    nothing at all.

    Raises:
        UsageError: a number is negative or not finite.
    """
    for pair in pairs:
        if not all(math.isfinite(each) for each in pair) or pair[0] < 0 or pair[2] < 0:
            raise UsageError(f"{pair}: wanted a predicted and a measured loss, and its error")
    known = [pair for pair in pairs if pair[1] > 0]
    if not any(predicted for predicted, _, _ in known):
        return Rescale()
    line, proportion = _line(known), _proportion(known)
    if line is None or line.floor < 0:
        return proportion
    least = _LEAST * proportion.scale
    if line.scale < least:  # the best floor for the least scale
        rest = _mean(known, [measured - least * predicted for predicted, measured, _ in known])
        return Rescale(max(0.0, rest), least)
    return line


def _weight(pair: Pair) -> float:
    """One over the variance of what was measured, the line's own doubt included."""
    _, measured, se = pair
    return 1 / (se**2 + (_DOUBT * measured) ** 2)


def _proportion(pairs: Sequence[Pair]) -> Rescale:
    """The best line through zero."""
    above = math.fsum(_weight(pair) * pair[0] * pair[1] for pair in pairs)
    return Rescale(0.0, above / math.fsum(_weight(pair) * pair[0] ** 2 for pair in pairs))


def _line(pairs: Sequence[Pair]) -> Rescale | None:
    """The best line; None where all predictions are alike."""
    x, y = _mean(pairs, [p for p, _, _ in pairs]), _mean(pairs, [m for _, m, _ in pairs])
    spread = _mean(pairs, [(p - x) ** 2 for p, _, _ in pairs])
    if spread <= (_ALIKE * x) ** 2:
        return None
    scale = _mean(pairs, [(p - x) * (m - y) for p, m, _ in pairs]) / spread
    return Rescale(y - scale * x, scale)


def _mean(pairs: Sequence[Pair], values: Sequence[float]) -> float:
    """The weighted mean of a value for each pair."""
    weights = [_weight(pair) for pair in pairs]
    return math.fsum(map(operator.mul, weights, values)) / math.fsum(weights)
