"""Sampling a tensor's rows: a ratio of two sums over all rows, from some of every stratum.

Strata are the experts, and of a tensor that holds gate and up each of both. Every stratum's mean
stands for its rows, weighted by the expert's mass. The estimate and its standard error are those
of the combined ratio estimator under stratified sampling without replacement (W. G. Cochran,
Sampling Techniques, 3rd ed., sections 5.3 and 6.11).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemcut.tensor_sensitivity import LocalError

Numbers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

_LEAST = 2  # rows of a stratum: one alone says nothing about its spread


@dataclass(frozen=True)
class Strata:
    """A tensor's rows in strata of one height, one after the other.

    mass: float64 [strata], what an error in a stratum's rows counts for; sums to 1.
    """

    height: int
    mass: Doubles

    @property
    def least(self) -> int:
        """The fewest rows that a sample has."""
        return len(self.mass) * min(_LEAST, self.height)

    def counts(self, rows: int) -> Numbers:
        """How many rows every stratum gives to a sample of about so many.

        Heavily weighted strata give more; each gives at least two, or all.
        """
        if rows >= self.height * len(self.mass):
            return np.full(len(self.mass), self.height)
        wanted = np.rint(rows * self.mass).astype(np.int64)
        return np.clip(wanted, min(_LEAST, self.height), self.height)

    def order(self, random: np.random.Generator) -> list[Numbers]:
        """For every stratum its rows' numbers in the tensor, in an order drawn at random."""
        return [
            number * self.height + random.permutation(self.height)
            for number in range(len(self.mass))
        ]

    def estimate(self, strata: Numbers, errors: Doubles, energies: Doubles) -> LocalError:
        """The sum of errors over all rows, relative to that of energies.

        Args:
            strata: [n], the stratum of each row that was drawn.
            errors: [n], its squared error.
            energies: [n], its squared length.
        """
        counts = np.bincount(strata, minlength=len(self.mass))
        scale = self.mass * self.height / counts  # of a stratum's sum over what was drawn

        def sums(values: Doubles) -> Doubles:
            return np.bincount(strata, values, len(self.mass)).astype(np.float64)

        energy = float(scale @ sums(energies))
        if not energy > 0:
            return LocalError(0.0)
        ratio = float(scale @ sums(errors)) / energy
        residuals = errors - ratio * energies
        centred = residuals - (sums(residuals) / counts)[strata]
        left = 1 - counts / self.height  # nothing is unknown of a stratum that was drawn whole
        variances = scale**2 * left * counts * sums(centred**2) / np.maximum(counts - 1, 1)
        return LocalError(ratio, float(np.sqrt(variances.sum())) / energy)

    def shares(self, strata: Numbers, energies: Doubles) -> Doubles:
        """Each stratum's share of the sum of energies over all rows: [strata], sums to 1.

        Args:
            strata, energies: of the rows that were drawn, as in `estimate`.
        """
        counts = np.bincount(strata, minlength=len(self.mass))
        sums = self.mass * np.bincount(strata, energies, len(self.mass)) / counts
        shares: Doubles = sums / (sums.sum() or 1.0)
        return shares
