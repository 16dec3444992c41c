"""Quadratic model of what removing several units costs, from single units and pairs.

What a unit adds to the residual stream moves the prediction, and moves add up. To second order, KL
is a quadratic form of the move, so that for a set S of units

    KL(S) ≈ Σ_i s_i + Σ_{i<j} (p_ij - s_i - s_j),

where s_i is the KL without unit i and p_ij the KL without units i and j. The same sum is used
for rises of the loss. Its best sets are those of a quadratic binary problem with a
fixed number of ones, as in arXiv 2602.00161.
"""

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

MOST_SETS = 500_000
"""Maximum number of sets of which all are compared."""

WIDTH = 4000
"""Number of sets of each size that are followed where there are more."""


@dataclass(frozen=True, eq=False)
class QuadraticModel:
    """Costs of single units, and what pairs cost besides."""

    singles: NDArray[np.float64]
    """Cost without each unit (unit,)."""
    interactions: NDArray[np.float64]
    """Cost without both units, less those without one each (unit, unit); 0 on the diagonal."""

    @classmethod
    def of(cls, singles: NDArray[np.float64], pairs: NDArray[np.float64]) -> "QuadraticModel":
        """Make the model of costs without one unit (unit,) and without two (unit, unit).

        Of the pairs, the part above the diagonal is read.
        """
        above = np.triu(pairs - singles[:, None] - singles[None, :], 1)
        return cls(singles, above + above.T)

    def predict(self, sets: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the costs without some sets of units, given as indices (set, member)."""
        total = self.singles[sets].sum(1)
        for first, second in combinations(range(sets.shape[1]), 2):
            total = total + self.interactions[sets[:, first], sets[:, second]]
        return total

    def best(self, size: int, count: int) -> NDArray[np.int64]:
        """Return the sets of a size with the lowest predicted costs, the lowest first.

        All sets are compared if there are at most `MOST_SETS`. Otherwise sets grow unit by unit,
        the `WIDTH` lowest of each size are kept, and the last are improved by exchanges of one unit
        until none helps; better sets may then be missed.

        Parameters
        ----------
        size : int
            Number of units in a set.
        count : int
            Maximum number of sets.

        Returns
        -------
        int64 array of shape (set, size)
            Indices of units, ascending in each set.
        """
        units = len(self.singles)
        if comb(units, size) <= MOST_SETS:
            sets = np.array(list(combinations(range(units), size)), np.int64).reshape(-1, size)
            return self._lowest(sets, count)
        return self._bounded(size, count)

    def _lowest(self, sets: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        # Stable, so that of equal sets the first in the order of units is taken.
        return sets[np.argsort(self.predict(sets), kind="stable")[:count]]

    def _bounded(self, size: int, count: int) -> NDArray[np.int64]:
        """Return sets that grew unit by unit, improved by exchanges."""
        sets = np.arange(len(self.singles), dtype=np.int64)[:, None]
        while sets.shape[1] < size:
            sets = self._lowest(self._extended(sets), WIDTH)
        sets = sets[: max(count, 50)]
        while True:
            # Without a member, and with another unit in its place.
            shorter = [np.delete(sets, member, 1) for member in range(size)]
            exchanged = self._extended(np.unique(np.concatenate(shorter), axis=0))
            better = self._lowest(np.unique(np.concatenate([sets, exchanged]), axis=0), len(sets))
            if np.array_equal(better, sets):
                return sets[:count]
            sets = better

    def _extended(self, sets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return every set with one unit more, each once."""
        units = np.arange(len(self.singles))
        grown = np.concatenate(
            [np.repeat(sets, len(units), 0), np.tile(units, len(sets))[:, None]], axis=1
        )
        grown.sort(axis=1)
        distinct = (np.diff(grown, axis=1) > 0).all(1)
        return np.unique(grown[distinct], axis=0)


def pairs_of(values: NDArray[np.float64], units: int) -> NDArray[np.float64]:
    """Lay out values of all pairs of units, in the order of combinations, as (unit, unit)."""
    table = np.full((units, units), np.nan)
    table[np.triu_indices(units, 1)] = values
    return table
