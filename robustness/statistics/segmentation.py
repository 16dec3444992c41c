"""Stages: where along the layers their signatures change, by exact dynamic programming.

Layers are divided into segments within which a model's signatures stay alike. With x(l, s) the
signature s of layer l, each with mean 0 and variance 1 over layers, a partition costs

    sum over segments, signatures and layers of (x(l, s) - mean of s over the segment)²

and the cheapest of all partitions into k segments is found exactly (Bellman 1961; Auger and
Lawrence 1989). How many segments there are is chosen by the Bayesian information criterion (Yao
1988): with n values of which the share c is left,

    n log c + (means + 2 boundaries) log n

A boundary counts twice because it is sought among all layers; of 100 sets of four or nine noisy
signatures, none was divided then. It may well choose one segment: no stages.
"""

from dataclasses import dataclass
from math import inf, log

import numpy as np
from numpy.typing import NDArray

SHORTEST = 2
"""Layers of a segment, but for the first and the last, which may be single layers."""


@dataclass(frozen=True)
class Segmentation:
    """The cheapest partition of layers into segments."""

    starts: tuple[int, ...]
    """The first layer of every segment; the first of them is 0."""
    cost: float
    """What is left of the signatures' variance, 0 to 1."""
    criterion: float
    """The Bayesian information criterion; lower is better."""


def standardise(signatures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give signatures (signature, layer) mean 0 and variance 1 over layers, NaN left out.

    One that does not vary is 0 everywhere.
    """
    with np.errstate(invalid="ignore"):
        centred = signatures - np.nanmean(signatures, 1, keepdims=True)
        spread = np.sqrt(np.nanmean(centred**2, 1, keepdims=True))
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12)


def segment(signatures: NDArray[np.float64], count: int) -> Segmentation:
    """Divide layers into so many segments, at the least cost.

    Parameters
    ----------
    signatures : float64 array of shape (signature, layer)
        Standardised; a value that is NaN counts for nothing.
    count : int
        How many segments.

    Raises
    ------
    ValueError
        If there are too few layers for that.
    """
    layers = signatures.shape[1]
    # What does not vary says nothing, and is counted as nothing.
    signatures = signatures[(np.nan_to_num(signatures) != 0).any(1)]
    costs = segment_costs(signatures)
    best = np.full((count + 1, layers + 1), inf)
    come = np.zeros((count + 1, layers + 1), int)
    best[0, 0] = 0
    for used in range(1, count + 1):
        for end in range(1, layers + 1):
            # The first and the last segment may be of one layer.
            shortest = 1 if used == 1 or end == layers else SHORTEST
            for start in range(end - shortest + 1):
                cost = best[used - 1, start] + costs[start, end]
                if cost < best[used, end]:
                    best[used, end], come[used, end] = cost, start
    if best[count, layers] == inf:
        raise ValueError(f"{layers} layers cannot be divided into {count} segments")
    starts, end = [], layers
    for used in range(count, 0, -1):
        end = int(come[used, end])
        starts.append(end)
    values = max(1, int((~np.isnan(signatures)).sum()))
    left = float(best[count, layers])
    parameters = count * len(signatures) + 2 * (count - 1)
    return Segmentation(
        starts=tuple(reversed(starts)),
        cost=left / values,
        criterion=values * log(max(left / values, 1e-12)) + parameters * log(values),
    )


def partitions(signatures: NDArray[np.float64], most: int = 8) -> list[Segmentation]:
    """Return the cheapest partitions into 1, 2, … segments, of three layers on average at least.

    The one with the least criterion is the best.
    """
    found = []
    for count in range(1, max(1, min(most, signatures.shape[1] // 3)) + 1):
        try:
            found.append(segment(signatures, count))
        except ValueError:
            break
    return found


def segment_costs(signatures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cost of every segment, (start, end): layers start to end - 1."""
    known = ~np.isnan(signatures)
    values = np.where(known, signatures, 0.0)

    def sums(array: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([np.zeros((len(array), 1)), array.cumsum(1)], 1)

    count, total, squares = (sums(part) for part in (known * 1.0, values, values**2))

    def between(array: NDArray[np.float64]) -> NDArray[np.float64]:
        return array[:, None, :] - array[:, :, None]

    inside = between(count)
    means = np.divide(between(total) ** 2, inside, out=np.zeros_like(inside), where=inside > 0)
    found: NDArray[np.float64] = (between(squares) - means).sum(0)
    return found
