"""Uncertainty of means over sequences; sequences of one document are not independent.

Every band and interval of the project is made here. A curve of means has a band by Student's t
(`band`, or `band_of` where only the standard error was kept). A number that is computed from means
has a percentile interval of their bootstrap (`bootstrap_means`, then `interval`). A user who asks
for a bootstrap gets BCa intervals (`robustness.statistics.bootstrap_intervals`).
"""

from functools import lru_cache
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are used: a sweep needs none
import xarray as xr
from numpy.typing import NDArray

from robustness.statistics.documents import Documents

DRAWS = 1000
"""Number of bootstrap samples."""

LEVEL = 0.95
"""Confidence level of every band and interval."""

TAIL = 0.025
"""Share of a distribution below an interval of that level, and above it."""

NORMAL_QUANTILE = 1.96
"""Number of standard deviations either side of a normal mean that hold `LEVEL` of the values."""

DRAWN_FROM = "drawn_from"
"""Scalar coordinate of bootstrap means: effective number of documents, or of other clusters."""


def _labels(values: xr.DataArray, over: str) -> NDArray[Any]:
    """Return the document of each value along a dimension; without documents, a label per value."""
    if over == "sequence" or "document" in values.coords:
        return values["document"].values
    return np.arange(values.sizes[over])


def effective_documents(values: xr.DataArray, over: str = "sequence") -> xr.DataArray:
    """Return the effective number of documents: how many of equal size give the mean as precisely.

    It is one more than Satterthwaite's degrees of freedom of the standard error, given the
    correlation within documents that the data show (Bell and McCaffrey 2002; Imbens and Kolesár
    2016). Documents of equal size count in full. If one document outweighs the rest, the effective
    number is little more than one.

    Parameters
    ----------
    values : DataArray
        Array with the dimension `over`, and perhaps a coordinate `document` along it.
    over : str
        Dimension that is averaged.

    Returns
    -------
    DataArray
        Effective numbers, without `over`; 1 for a single document.
    """
    numbers = values.transpose(..., over).values.astype(np.float64)
    effective = Documents.of(numbers, _labels(values, over)).effective()
    rest = values.isel({over: 0}, drop=True)
    return rest.astype(np.float64, keep_attrs=False).copy(data=effective)


def standard_error(values: xr.DataArray) -> xr.DataArray:
    """Standard error of the mean over sequences, clustered by document.

    The estimator is cluster-robust. With n sequences, their mean x̄ and G documents,

        se² = G / (G - 1) · Σ_g (Σ_{i in g} (x_i - x̄))² / n²

    G is the number of documents if they are of equal size, and otherwise `effective_documents`.

    Parameters
    ----------
    values : DataArray
        Array with a dimension `sequence` and a coordinate `document` along it.

    Returns
    -------
    DataArray
        Standard errors, without `sequence`; NaN where there is a single document, or a value is
        missing.
    """
    # Residuals are small differences of large sums: float32, as in files, would lose their digits.
    numbers = values.transpose(..., "sequence").values.astype(np.float64)
    documents = Documents.of(numbers, values["document"].values)
    count = documents.effective()
    factor = np.divide(count, count - 1, out=np.full_like(count, np.nan), where=count > 1)
    error = np.sqrt(np.square(documents.residuals).sum(-1) * factor) / documents.sizes.sum()
    rest = values.isel(sequence=0, drop=True)
    return rest.astype(np.float64, keep_attrs=False).copy(data=error)


def band(values: xr.DataArray, level: float = LEVEL) -> xr.DataArray:
    """Ends of the interval around a mean over sequences, (…, end), by Student's t.

    The degrees of freedom are those of `effective_documents`.
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
        Means and their standard errors, of the same shape; the interval is NaN where the error is.
    independent : DataArray or int
        Number of independent values that the mean is over, such as `effective_documents`.
    level : float
        Confidence level.

    Returns
    -------
    DataArray
        Interval of the shape of `mean`, with `end` (low, high) first.
    """
    # Below half a degree of freedom the quantiles of Student's t overflow.
    freedom = np.clip(independent - 1, 0.5, None)
    half = error * scipy.stats.t.ppf((1 + level) / 2, freedom)
    return xr.concat([mean - half, mean + half], xr.Variable("end", ["low", "high"]))


def bootstrap_means(
    values: xr.DataArray, over: str = "sequence", *, draws: int = DRAWS, seed: int = 0
) -> xr.DataArray:
    """Means of the data, and of bootstrap samples of whole documents (Efron 1979).

    A quantity that follows from means (a median over layers, the layer of the largest value) can be
    computed for all draws at once; its spread over the draws is its uncertainty. Two arrays over
    the same documents share their samples, so differences between them are paired.

    Parameters
    ----------
    values : DataArray
        Array with the dimension `over`. With a coordinate `document` along it, the values of a
        document are resampled together.
    over : str
        Dimension that is averaged: sequences, items, batches.
    draws : int
        Number of bootstrap samples.
    seed : int
        Seed of the samples.

    Returns
    -------
    DataArray
        Means with `draw` in the place of `over`, first; draw 0 is the mean of the data themselves.
        NaN where a value is missing; with fewer than two documents, only draw 0 is a number.
        The coordinate `drawn_from` is the median of `effective_documents`.
    """
    labels = _labels(values, over)
    numbers = values.transpose(..., over).values.astype(np.float64)
    documents = Documents.of(numbers.reshape(-1, len(labels)), labels)
    sizes, count = documents.sizes, len(documents.sizes)
    weights = _weights(count, draws, seed)
    # With documents summed up beforehand, all draws are one product of matrices.
    means = weights @ documents.sums.T / (weights @ sizes)[:, None]
    rest = values.isel({over: 0}, drop=True).drop_vars("document", errors="ignore")
    return xr.DataArray(
        means.reshape(-1, *rest.shape),
        dims=("draw", *rest.dims),
        coords={**rest.coords, DRAWN_FROM: _median(documents.effective())},
        name=values.name,
    )


# Claims ask for many means over the same documents.
@lru_cache(maxsize=4)
def _weights(count: int, draws: int, seed: int) -> NDArray[np.float64]:
    """Return how often each document counts: once in the data, first, and then in every draw."""
    random = np.random.default_rng(seed)
    weights = random.multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)
    if count < 2:
        weights[:] = np.nan
    weights = np.concatenate([np.ones((1, count)), weights])
    # The cache hands the same array to every caller.
    weights.flags.writeable = False
    return weights


def interval(draws: xr.DataArray) -> tuple[float, float]:
    """Ends of the 95 % interval of a quantity that was computed from bootstrap means.

    The interval is the expanded percentile interval (Hesterberg 2015, What Teachers Should Know
    About the Bootstrap, section 5.2). With few effective documents it is wider than plain
    percentiles, by as much as an interval by Student's t is wider than one that divides the
    variance by n. Plain percentiles of ten documents would cover in 90 of 100 cases.

    Parameters
    ----------
    draws : DataArray
        Quantity by draw, (draw,), computed from `bootstrap_means`; draw 0 is left out. Without a
        coordinate `drawn_from`, the number of documents is taken to be large.

    Returns
    -------
    tuple of float
        Lower and upper end; both NaN if the quantity is NaN in any draw.
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
    """Return the 95 % interval of the share `count / total` of independent items (Wilson 1927)."""
    wilson = scipy.stats.binomtest(count, total).proportion_ci(LEVEL, method="wilson")
    return float(wilson.low), float(wilson.high)


def interval_of_rank_correlation(correlation: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of Spearman's rank correlation of `count` pairs, 4 or more.

    The interval uses Fisher's z with the variance of Bonett and Wright (2000). Fisher's z is not
    defined for correlations of 1 and -1, which count as ±0.999.
    """
    middle = np.arctanh(np.clip(correlation, -0.999, 0.999))
    half = NORMAL_QUANTILE * np.sqrt((1 + correlation**2 / 2) / (count - 3))
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))


def _median(values: NDArray[np.float64]) -> float:
    """Return the median of the finite values; 1 if there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else 1.0


def expanded_percentile(level: float, count: float) -> float:
    """Return the percentile of draws of `count` documents that matches one of Student's t."""
    # Draws spread as if the variance were divided by n, not by n - 1: hence the factor.
    wider = np.sqrt(count / (count - 1)) * scipy.stats.t.ppf(level, count - 1)
    return float(scipy.stats.norm.cdf(wider))


def draw_coordinates(draws: xr.DataArray) -> dict[str, xr.DataArray]:
    """Return the coordinate `drawn_from` of draws, for an array made of their bare values."""
    return {DRAWN_FROM: draws[DRAWN_FROM]} if DRAWN_FROM in draws.coords else {}
