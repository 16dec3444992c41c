"""Uncertainty of means over sequences, which within a document are not independent.

Every band and interval of the project is made here. A curve of means has a band by Student's t
(`band`, or `band_of` where only the standard error was kept). A number that is computed from means
has the percentile interval of their bootstrap (`drawn`, then `interval`). A user who asks for a
bootstrap gets BCa intervals (`robustness.statistics.bootstrap_intervals`).
"""

from functools import lru_cache
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are used: a sweep needs none
import xarray as xr
from numpy.typing import NDArray

from robustness.statistics.documents import Documents

DRAWS = 1000
"""Number of samples of a bootstrap."""

LEVEL = 0.95
"""Confidence of every band and interval."""

TAIL = 0.025
"""Share of a distribution below an interval of that confidence, and above it."""

NORMAL_QUANTILE = 1.96
"""Standard deviations of a normal distribution either side of its mean that hold `LEVEL` of it."""

DRAWN_FROM = "drawn_from"
"""Scalar coordinate of draws: how many documents, or other independent units, they are worth."""


def _labels(values: xr.DataArray, over: str) -> NDArray[Any]:
    """Return which document each value along a dimension is of; each of its own without any."""
    if over == "sequence" or "document" in values.coords:
        return values["document"].values
    return np.arange(values.sizes[over])


def effective_documents(values: xr.DataArray, over: str = "sequence") -> xr.DataArray:
    """Return how many documents of equal size would tell the mean as well as those there are.

    One more than the degrees of freedom of the standard error, which are Satterthwaite's, for
    values that within a document are correlated as they are found to be (Bell and McCaffrey 2002;
    Imbens and Kolesár 2016). With documents of equal size, their number; with one that outweighs
    the rest, little more than one.

    Parameters
    ----------
    values : DataArray
        With the dimension `over`, and perhaps a coordinate `document` along it.
    over : str
        Dimension that is averaged.

    Returns
    -------
    DataArray
        Without `over`; 1 for a single document.
    """
    numbers = values.transpose(..., over).values.astype(np.float64)
    found = Documents.of(numbers, _labels(values, over)).effective()
    rest = values.isel({over: 0}, drop=True)
    return rest.astype(np.float64, keep_attrs=False).copy(data=found)


def standard_error(values: xr.DataArray) -> xr.DataArray:
    """Standard error of the mean over sequences, clustered by document.

    The cluster-robust estimator: with n sequences, x̄ the mean and G documents of equal size, or as
    many as tell as much (`effective_documents`),

        se² = G / (G - 1) · Σ_g (Σ_{i in g} (x_i - x̄))² / n²

    Parameters
    ----------
    values : DataArray
        With a dimension `sequence` and a coordinate `document` along it.

    Returns
    -------
    DataArray
        Without `sequence`; NaN where there is a single document, or a value is missing.
    """
    numbers = values.transpose(..., "sequence").values.astype(np.float64)
    documents = Documents.of(numbers, values["document"].values)
    count = documents.effective()
    factor = np.divide(count, count - 1, out=np.full_like(count, np.nan), where=count > 1)
    error = np.sqrt(np.square(documents.residuals).sum(-1) * factor) / documents.sizes.sum()
    rest = values.isel(sequence=0, drop=True)
    return rest.astype(np.float64, keep_attrs=False).copy(data=error)


def band(values: xr.DataArray, level: float = LEVEL) -> xr.DataArray:
    """Ends of the interval around a mean over sequences, (…, end), by Student's t.

    As many standard errors either side as Student's t has for so many `effective_documents`.
    """
    mean = values.mean("sequence", skipna=False)
    return band_of(mean, standard_error(values), effective_documents(values), level)


def band_of(
    mean: xr.DataArray,
    error: xr.DataArray,
    independent: xr.DataArray | int,
    level: float = LEVEL,
) -> xr.DataArray:
    """Ends of the interval around a mean whose standard error is known, (…, end).

    Parameters
    ----------
    mean, error : DataArray
        Of the same shape; the interval is NaN where the error is.
    independent : DataArray or int
        Number of independent values that the mean is over, such as `effective_documents`.
    level : float
        Confidence.

    Returns
    -------
    DataArray
        Of the shape of `mean`, with `end` (low, high) first.
    """
    # Below half a degree of freedom the quantiles of Student's t overflow.
    freedom = np.clip(independent - 1, 0.5, None)
    half = error * scipy.stats.t.ppf((1 + level) / 2, freedom)
    return xr.concat([mean - half, mean + half], xr.Variable("end", ["low", "high"]))


def drawn(
    values: xr.DataArray, over: str = "sequence", *, draws: int = DRAWS, seed: int = 0
) -> xr.DataArray:
    """Means of the data, and of data drawn again, whole documents at a time (Efron 1979).

    What follows from means (a median over layers, the layer of the largest) can be computed for all
    draws at once, and its spread over them is its uncertainty. Two arrays over the same documents
    are drawn alike, so that differences between them are paired.

    Parameters
    ----------
    values : DataArray
        With the dimension `over`, and perhaps a coordinate `document` along it, whose sequences
        are drawn together.
    over : str
        Dimension that is averaged: sequences, items, batches.
    draws : int
        Number of samples.
    seed : int
        Seed of the samples.

    Returns
    -------
    DataArray
        With `draw` in the place of `over`, first; draw 0 is the mean of the data themselves. NaN
        where a value is missing, and, but for draw 0, where there are fewer than two documents.
        The coordinate `drawn_from` is the median of `effective_documents`.
    """
    labels = _labels(values, over)
    numbers = values.transpose(..., over).values.astype(np.float64)
    documents = Documents.of(numbers.reshape(-1, len(labels)), labels)
    sizes, count = documents.sizes, len(documents.sizes)
    weights = _weights(count, draws, seed)
    means = weights @ documents.sums.T / (weights @ sizes)[:, None]
    rest = values.isel({over: 0}, drop=True)
    return xr.DataArray(
        means.reshape(-1, *rest.shape),
        dims=("draw", *rest.dims),
        coords={name: each for name, each in rest.coords.items() if name != "document"}
        | {DRAWN_FROM: _median(documents.effective())},
        name=values.name,
    )


# Claims ask for many means over the same documents.
@lru_cache(maxsize=4)
def _weights(count: int, draws: int, seed: int) -> NDArray[np.float64]:
    """Return how often each document counts in the data, first, and in every draw."""
    random = np.random.default_rng(seed)
    weights = random.multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)
    if count < 2:
        weights[:] = np.nan
    weights = np.concatenate([np.ones((1, count)), weights])
    weights.flags.writeable = False
    return weights


def interval(draws: xr.DataArray) -> tuple[float, float]:
    """Ends of the 95 % interval of what follows from means that were drawn.

    Percentiles of the draws, wider where they are of few documents, or of documents of which a few
    outweigh the rest (`effective_documents`), by as much as an interval by Student's t is wider
    than one that divides the variance by n (the expanded percentile interval: Hesterberg 2015,
    What Teachers Should Know About the Bootstrap, section 5.2). Plain percentiles of ten documents
    would cover in 90 of 100 cases.

    Parameters
    ----------
    draws : DataArray
        (draw,), as from `drawn` or made of it; draw 0 is left out. Without a coordinate
        `drawn_from`, documents are taken to be many.

    Returns
    -------
    tuple of float
        Both NaN where a draw is.
    """
    samples, tail = draws.isel(draw=slice(1, None)).values, TAIL
    if DRAWN_FROM in draws.coords:
        count = float(np.min(draws[DRAWN_FROM]))
        if count <= 1:
            return np.nan, np.nan
        tail = expanded_percentile(tail, count)
    low, high = percentiles(samples, tail)
    return float(low), float(high)


def percentiles(samples: NDArray[np.float64], tail: float = TAIL) -> NDArray[np.float64]:
    """Return the percentiles of samples (draw, …) that leave out a tail at either end, (end, …)."""
    return np.quantile(samples, (tail, 1 - tail), axis=0)


def interval_of_share(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, `count` of `total` independent items (Wilson 1927)."""
    found = scipy.stats.binomtest(count, total).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def interval_of_rank_correlation(correlation: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of Spearman's rank correlation of so many pairs, 4 or more.

    By Fisher's z with the variance of Bonett and Wright (2000). A correlation of 1 or -1, which
    Fisher's z cannot take, counts as 0.999.
    """
    middle = np.arctanh(np.clip(correlation, -0.999, 0.999))
    half = NORMAL_QUANTILE * np.sqrt((1 + correlation**2 / 2) / (count - 3))
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))


def _median(values: NDArray[np.float64]) -> float:
    """Return the median of the values that are numbers; 1 where none is."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else 1.0


def expanded_percentile(level: float, count: float) -> float:
    """Return the percentile to take of draws of so many documents, for one of Student's t."""
    wider = np.sqrt(count / (count - 1)) * scipy.stats.t.ppf(level, count - 1)
    return float(scipy.stats.norm.cdf(wider))


def drawn_as(draws: xr.DataArray) -> dict[str, xr.DataArray]:
    """Return the coordinate that says what draws are of, for what is made of their values."""
    return {DRAWN_FROM: draws[DRAWN_FROM]} if DRAWN_FROM in draws.coords else {}
