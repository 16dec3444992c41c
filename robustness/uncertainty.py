"""Uncertainty of means over sequences, which within a document are not independent."""

import warnings
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are used: a sweep needs none
import xarray as xr
from numpy.typing import NDArray

DRAWS = 1000
"""Samples of a bootstrap."""

DRAWN_FROM = "drawn_from"
"""Scalar coordinate of draws: how many documents, or other independent units, they are of."""


def _sums(numbers: NDArray[np.float64], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return sums over each document, along the last dimension, and how many values it has."""
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    return np.add.reduceat(numbers[..., order], starts, axis=-1), sizes


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
    numbers = values.transpose(..., "sequence").values.astype(np.float64)
    residual = numbers - numbers.mean(-1, keepdims=True)
    per_document, sizes = _sums(residual, values["document"].values)
    documents = len(sizes)
    factor = documents / (documents - 1) if documents > 1 else np.nan
    error = np.sqrt(np.square(per_document).sum(-1) * factor) / sizes.sum()
    rest = values.isel(sequence=0, drop=True)
    return rest.astype(np.float64, keep_attrs=False).copy(data=error)


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
    numbers = values.transpose(..., over).values.astype(np.float64)
    per_document, sizes = _sums(numbers.reshape(-1, len(labels)), labels)
    count = len(sizes)
    random = np.random.default_rng(seed)
    weights = random.multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)
    if count < 2:
        weights[:] = np.nan
    weights = np.concatenate([np.ones((1, count)), weights])
    means = weights @ per_document.T / (weights @ sizes)[:, None]
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
        level = _expanded(level, count)
    low, high = np.quantile(samples, (level, 1 - level))
    return float(low), float(high)


def _expanded(level: float, count: int) -> float:
    """Return the percentile to take of draws of so many documents, for one of Student's t."""
    wider = np.sqrt(count / (count - 1)) * scipy.stats.t.ppf(level, count - 1)
    return float(scipy.stats.norm.cdf(wider))


def drawn_as(draws: xr.DataArray) -> dict[str, xr.DataArray]:
    """Return the coordinate that says what draws are of, for what is made of their values."""
    return {DRAWN_FROM: draws[DRAWN_FROM]} if DRAWN_FROM in draws.coords else {}


def bootstrap(
    values: xr.DataArray, *, level: float = 0.95, draws: int = DRAWS - 1, seed: int = 0
) -> xr.DataArray:
    """Bootstrap interval of the mean over sequences, whole documents drawn at a time.

    scipy's bias-corrected and accelerated interval (Efron 1987), which need not be symmetric: the
    one to look at where few documents are far from the rest. Its percentile interval where that is
    not defined, as for values that are all alike. Of few documents wider, as in `interval`.

    Parameters
    ----------
    values : DataArray
        With a dimension `sequence` and a coordinate `document` along it; perhaps a difference, from
        `robustness.difference`, whose interval is then that of paired data.
    level : float
        Of confidence.
    draws : int
        How many samples.
    seed : int
        Of the samples.

    Returns
    -------
    DataArray
        Without `sequence`, with `end` (low, high) last; NaN where there are fewer than two
        documents, or a value is missing.
    """
    rest = values.isel(sequence=0, drop=True)
    numbers = values.transpose(..., "sequence").values.astype(np.float64)
    rows = numbers.reshape(-1, numbers.shape[-1])
    known = np.isfinite(rows).all(1)
    ends = np.full((len(rows), 2), np.nan)
    sums, sizes = _sums(rows[known], values["document"].values)
    if len(sizes) > 1 and known.any():
        counts = np.broadcast_to(sizes.astype(np.float64), sums.shape)
        confidence = 1 - 2 * _expanded((1 - level) / 2, len(sizes))
        for method in ("percentile", "BCa"):
            with warnings.catch_warnings(), np.errstate(invalid="ignore"):
                warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
                found = scipy.stats.bootstrap(
                    (sums, counts),
                    lambda total, count, axis: total.sum(axis) / count.sum(axis),
                    n_resamples=draws,
                    batch=100,
                    vectorized=True,
                    paired=True,
                    axis=-1,
                    confidence_level=confidence,
                    method=method,
                    rng=np.random.default_rng(seed),
                ).confidence_interval
            both = np.stack([found.low, found.high], -1)
            ends[known] = np.where(np.isfinite(both), both, ends[known])
    return xr.DataArray(
        ends.reshape(*rest.shape, 2),
        dims=(*rest.dims, "end"),
        coords={**rest.coords, "end": ["low", "high"]},
        name=values.name,
    )


def intervals(dataset: xr.Dataset, *, level: float = 0.95, seed: int = 0) -> xr.Dataset:
    """Return the means of a dataset's variables over sequences, with bootstrap intervals.

    Returns
    -------
    Dataset
        Every variable NAME that has sequences, averaged over them, and `NAME_low` and `NAME_high`.
    """
    found = {}
    for name, values in dataset.data_vars.items():
        if "sequence" in values.dims and values.dtype.kind == "f":
            ends = bootstrap(values, level=level, seed=seed)
            found[str(name)] = values.mean("sequence", skipna=False, keep_attrs=True)
            for end in ("low", "high"):
                attrs = {**values.attrs, "long_name": f"{end} end of the {level:.0%} interval"}
                found[f"{name}_{end}"] = ends.sel(end=end, drop=True).assign_attrs(attrs)
    return xr.Dataset(found, attrs=dataset.attrs)
