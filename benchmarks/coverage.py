"""Simulates how often nominal 95 % intervals of a mean contain it, for few and unequal documents.

Sequences of a document share a part of their variance. Documents are equal, or their sizes are
drawn from a log-normal distribution; what is measured is normal, or as skewed as an exponential
variable. Intervals are those of the project (a band of Student's t, percentiles of draws, the
bias-corrected and accelerated bootstrap), and, for comparison, Student's t with as many degrees of
freedom as there are documents less one.

    python benchmarks/coverage.py --simulations 1000
"""

import argparse
from collections import Counter

import numpy as np
import scipy.stats
import xarray as xr
from numpy.typing import NDArray

from robustness.statistics.bootstrap_intervals import bootstrap
from robustness.statistics.uncertainty import band, bootstrap_means, interval

DOCUMENTS = (8, 15, 30)
SPREADS = {"equal": 0.0, "unequal": 0.8, "very unequal": 1.3}
"""Standard deviation of the logarithm of a document's sequences."""

SHARED = (0.1, 0.6)
"""Correlation of the sequences of a document."""

SHAPES = ("normal", "skewed")


def sizes(random: np.random.Generator, count: int, spread: float) -> NDArray[np.int64]:
    """Draw how many sequences each document has."""
    return np.maximum(1, random.lognormal(1.5, spread, count).round()).astype(np.int64)


def noise(random: np.random.Generator, count: int, shape: str) -> NDArray[np.float64]:
    """Draw numbers of mean 0 and variance 1."""
    if shape == "normal":
        return random.normal(size=count)
    return random.exponential(size=count) - 1


def sample(
    random: np.random.Generator, count: int, spread: float, shared: float, shape: str
) -> xr.DataArray:
    """Draw what is measured of the sequences of so many documents; its mean is 0."""
    document = np.repeat(np.arange(count), sizes(random, count, spread))
    of_documents = noise(random, count, shape)[document]
    values = np.sqrt(shared) * of_documents
    values += np.sqrt(1 - shared) * noise(random, len(document), shape)
    return xr.DataArray(values, dims="sequence", coords={"document": ("sequence", document)})


def by_number(values: xr.DataArray) -> tuple[float, float]:
    """Return the interval that counts every document as one, however long."""
    document = values["document"].values
    sums = np.bincount(document, values.values - values.values.mean())
    count = len(sums)
    error = np.sqrt((sums**2).sum() * count / (count - 1)) / len(document)
    half = error * scipy.stats.t.ppf(0.975, count - 1)
    return float(values.mean()) - half, float(values.mean()) + half


def intervals(values: xr.DataArray, draws: int) -> dict[str, tuple[float, float]]:
    """Return the intervals of every kind."""
    low, high = band(values).values
    first, last = bootstrap(values, draws=draws).values
    return {
        "by number": by_number(values),
        "t": (float(low), float(high)),
        "percentile": interval(bootstrap_means(values, draws=draws)),
        "BCa": (float(first), float(last)),
    }


def main() -> None:
    """Print a row for every number of documents, spread of their sizes, correlation and shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=499)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    print("documents  sizes         shared  shape    by number  t      percentile  BCa")
    for count in DOCUMENTS:
        for name, spread in SPREADS.items():
            for shared in SHARED:
                for shape in SHAPES:
                    covered: Counter[str] = Counter()
                    for _ in range(arguments.simulations):
                        values = sample(random, count, spread, shared, shape)
                        for kind, (low, high) in intervals(values, arguments.draws).items():
                            covered[kind] += low <= 0 <= high
                    shown = {kind: each / arguments.simulations for kind, each in covered.items()}
                    print(
                        f"{count:9}  {name:12}  {shared:6}  {shape:7}  {shown['by number']:9.3f}"
                        f"  {shown['t']:.3f}  {shown['percentile']:10.3f}  {shown['BCa']:.3f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
