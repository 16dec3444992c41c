"""Sums of values by document, and the correlation within documents that follows from them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Documents:
    """Sums over documents of an array (…, value)."""

    sums: NDArray[np.float64]
    """Sum of the values of each document, (…, document)."""
    sizes: NDArray[np.int64]
    """Number of values of each document, (document)."""
    squares: NDArray[np.float64]
    """Sum of the squared distances of all values from the mean of their document, (…)."""

    @classmethod
    def of(cls, numbers: NDArray[np.float64], labels: NDArray[Any]) -> "Documents":
        """Sum numbers (…, value) over the values with the same label (value)."""
        # Stable, so that the values of a document are added up in the order of the data.
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
        """Sum of the distances of each document's values from the overall mean, (…, document)."""
        mean = self.sums.sum(-1, keepdims=True) / self.sizes.sum()
        return self.sums - self.sizes * mean

    def correlation(self) -> NDArray[np.float64]:
        """Return the intraclass correlation of values of the same document (…), 0 to 1.

        It is estimated by one-way analysis of variance, from the mean squares between and within
        documents (Donner and Koval 1980). It is 0 where every document has one value.
        """
        sizes, count = self.sizes, len(self.sizes)
        values = int(sizes.sum())
        if values == count or count < 2:
            return np.zeros(self.sums.shape[:-1])
        within = self.squares / (values - count)
        between = (np.square(self.residuals) / sizes).sum(-1) / (count - 1)
        # The size of a document that stands for unequal ones; less than their mean size.
        typical_size = (values - np.square(sizes).sum() / values) / (count - 1)
        # The estimate of the variance between documents is negative where they hardly differ.
        component = np.maximum(0.0, (between - within) / typical_size)
        total = component + within
        return np.divide(component, total, out=np.zeros_like(total), where=total > 0)

    def effective(self) -> NDArray[np.float64]:
        """Return the effective number of documents (…); see `uncertainty.effective_documents`."""
        sizes = self.sizes.astype(np.float64)
        if len(sizes) < 2:
            return np.ones(self.sums.shape[:-1])
        share = sizes / sizes.sum()
        # The degrees of freedom are tr(C)² / tr(C²), where C is the covariance of the residuals,
        # diag(v) - w v' - v w' + V w w'. The traces are written out, since a matrix of documents by
        # documents for each mean would not fit into memory.
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
        freedom = np.divide(
            np.square(trace),
            trace_of_square,
            out=np.zeros_like(trace),
            where=trace_of_square > 0,
        )
        return freedom + 1
