"""Uncertainty of means over sequences, which within a document are not independent."""

import numpy as np
import scipy.stats
import xarray as xr

DRAWS = 1000
"""Samples of a bootstrap."""

DRAWN_FROM = "drawn_from"
"""Scalar coordinate of draws: how many documents, or other independent units, they are of."""


def standard_error(values: xr.DataArray) -> xr.DataArray:
    """Standard error of the mean over sequences, clustered by document.

    The cluster-robust estimator: with n sequences, G documents and x̄ the mean,

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
    residual = values.astype("float64") - values.mean("sequence", dtype="float64", skipna=False)
    per_document = residual.groupby("document").sum("sequence", skipna=False)
    documents = per_document.sizes["document"]
    if documents < 2:
        return xr.full_like(per_document.isel(document=0, drop=True), np.nan)
    variance = (per_document**2).sum("document", skipna=False) * documents / (documents - 1)
    return variance**0.5 / values.sizes["sequence"]


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
        What is averaged: sequences, items, batches.
    draws : int
        How many samples.
    seed : int
        Of the samples.

    Returns
    -------
    DataArray
        With `draw` in the place of `over`, first; draw 0 is the mean of the data themselves. NaN
        where a value is missing, and, but for draw 0, where there are fewer than two documents.
        The coordinate `drawn_from` is how many documents there are.
    """
    if over == "sequence" or "document" in values.coords:
        labels = values["document"].values
    else:
        labels = np.arange(values.sizes[over])
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    count = len(starts)
    random = np.random.default_rng(seed)
    weights = random.multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)
    if count < 2:
        weights[:] = np.nan
    weights = np.concatenate([np.ones((1, count)), weights])
    numbers = values.transpose(over, ...).values.astype(np.float64)
    per_document = np.add.reduceat(numbers.reshape(len(labels), -1)[order], starts)
    means = weights @ per_document / (weights @ sizes)[:, None]
    rest = values.isel({over: 0}, drop=True)
    return xr.DataArray(
        means.reshape(-1, *rest.shape),
        dims=("draw", *rest.dims),
        coords={name: each for name, each in rest.coords.items() if name != "document"}
        | {DRAWN_FROM: count},
        name=values.name,
    )


def interval(draws: xr.DataArray) -> tuple[float, float]:
    """Ends of the 95 % interval of what follows from means that were drawn.

    Percentiles of the draws, wider where they are of few documents, by as much as an interval by
    Student's t is wider than one that divides the variance by n (the expanded percentile interval:
    Hesterberg 2015, What Teachers Should Know About the Bootstrap, section 5.2). Plain percentiles
    of ten documents would cover in 90 of 100 cases.

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
    samples, level = draws.isel(draw=slice(1, None)).values, 0.025
    if DRAWN_FROM in draws.coords:
        count = int(np.min(draws[DRAWN_FROM]))
        if count < 2:
            return np.nan, np.nan
        wider = np.sqrt(count / (count - 1)) * scipy.stats.t.ppf(level, count - 1)
        level = float(scipy.stats.norm.cdf(wider))
    low, high = np.quantile(samples, (level, 1 - level))
    return float(low), float(high)


def drawn_as(draws: xr.DataArray) -> dict[str, xr.DataArray]:
    """Return the coordinate that says what draws are of, for what is made of their values."""
    return {DRAWN_FROM: draws[DRAWN_FROM]} if DRAWN_FROM in draws.coords else {}
