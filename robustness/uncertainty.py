"""Uncertainty of means over sequences, which within a document are not independent."""

import numpy as np
import xarray as xr

DRAWS = 1000
"""Samples of a bootstrap."""


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
        coords={name: each for name, each in rest.coords.items() if name != "document"},
        name=values.name,
    )
