"""Values summed by the document that they are of, and what the sums tell of their correlation."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Documents:
    """Sums over documents of numbers (…, value), for all that is computed from them."""

    sums: NDArray[np.float64]
    """(…, document)."""
    sizes: NDArray[np.int64]
    """(document): values in each."""
    squares: NDArray[np.float64]
    """(…): sum of the squared distances of values from their document's mean."""

    @classmethod
    def of(cls, numbers: NDArray[np.float64], labels: NDArray[Any]) -> "Documents":
        """Sum numbers (…, value) by the label (value) of each."""
        order = np.argsort(labels, kind="stable")
        _, starts, index, sizes = np.unique(
            labels[order], return_index=True, return_inverse=True, return_counts=True
        )
        ordered = numbers[..., order]
        sums = np.add.reduceat(ordered, starts, axis=-1)
        squares = np.square(ordered - (sums / sizes)[..., index]).sum(-1)
        return cls(sums, sizes, squares)

    @property
    def residuals(self) -> NDArray[np.float64]:
        """(…, document): sums of the distances from the mean of all values."""
        mean = self.sums.sum(-1, keepdims=True) / self.sizes.sum()
        return self.sums - self.sizes * mean

    def correlation(self) -> NDArray[np.float64]:
        """Return the correlation of values within a document (…), 0 to 1.

        The estimator of one-way analysis of variance, from the mean squares between and within
        documents (Donner and Koval 1980). 0 where every document has one value.
        """
        sizes, count = self.sizes, len(self.sizes)
        values = int(sizes.sum())
        if values == count or count < 2:
            return np.zeros(self.sums.shape[:-1])
        within = self.squares / (values - count)
        between = (np.square(self.residuals) / sizes).sum(-1) / (count - 1)
        typical = (values - np.square(sizes).sum() / values) / (count - 1)
        component = np.maximum(0.0, (between - within) / typical)
        total = component + within
        return np.divide(component, total, out=np.zeros_like(total), where=total > 0)

    def effective(self) -> NDArray[np.float64]:
        """Return how many documents of equal size tell as much (…); see `effective_documents`."""
        sizes = self.sizes.astype(np.float64)
        if len(sizes) < 2:
            return np.ones(self.sums.shape[:-1])
        share = sizes / sizes.sum()
        # Two traces of the residuals' covariance, diag(v) - w v' - v w' + V w w'.
        variance = sizes * (1 + (sizes - 1) * self.correlation()[..., None])
        whole = variance.sum(-1)
        weighted, shared = variance @ share, np.square(share).sum()
        trace = whole - 2 * weighted + whole * shared
        squared = np.square(variance)
        trace_of_square = (
            squared.sum(-1) * (1 + 2 * shared)
            + 2 * np.square(weighted)
            + np.square(whole * shared)
            - 4 * squared @ share
            + 2 * whole * (variance @ np.square(share))
            - 4 * whole * weighted * shared
        )
        known = trace_of_square > 0
        freedom = np.divide(
            np.square(trace), trace_of_square, out=np.zeros_like(trace), where=known
        )
        return freedom + 1
