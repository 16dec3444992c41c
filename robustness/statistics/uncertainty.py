"""Uncertainty of means over sequences, which within a document are not independent."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are used: a sweep needs none
import xarray as xr
from numpy.typing import NDArray

DRAWS = 1000
"""Samples of a bootstrap."""

DRAWN_FROM = "drawn_from"
"""Scalar coordinate of draws: how many documents, or other independent units, they are worth."""


@dataclass(frozen=True)
class _Documents:
    """Sums over documents of numbers (…, value), for all that is computed from them."""

    sums: NDArray[np.float64]
    """(…, document)."""
    sizes: NDArray[np.int64]
    """(document): values in each."""
    squares: NDArray[np.float64]
    """(…): sum of the squared distances of values from their document's mean."""

    @classmethod
    def of(cls, numbers: NDArray[np.float64], labels: NDArray[Any]) -> "_Documents":
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
        What is averaged.

    Returns
    -------
    DataArray
        Without `over`; 1 for a single document.
    """
    numbers = values.transpose(..., over).values.astype(np.float64)
    found = _Documents.of(numbers, _labels(values, over)).effective()
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
    documents = _Documents.of(numbers, values["document"].values)
    count = documents.effective()
    factor = np.divide(count, count - 1, out=np.full_like(count, np.nan), where=count > 1)
    error = np.sqrt(np.square(documents.residuals).sum(-1) * factor) / documents.sizes.sum()
    rest = values.isel(sequence=0, drop=True)
    return rest.astype(np.float64, keep_attrs=False).copy(data=error)


def band(values: xr.DataArray, level: float = 0.95) -> xr.DataArray:
    """Ends of the interval around a mean over sequences, (…, end), by Student's t.

    As many standard errors either side as Student's t has for so many `effective_documents`.
    """
    mean, error = values.mean("sequence", skipna=False), standard_error(values)
    freedom = (effective_documents(values) - 1).clip(0.5)
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
        The coordinate `drawn_from` is the median of `effective_documents`.
    """
    labels = _labels(values, over)
    numbers = values.transpose(..., over).values.astype(np.float64)
    documents = _Documents.of(numbers.reshape(-1, len(labels)), labels)
    sizes, count = documents.sizes, len(documents.sizes)
    random = np.random.default_rng(seed)
    weights = random.multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)
    if count < 2:
        weights[:] = np.nan
    weights = np.concatenate([np.ones((1, count)), weights])
    means = weights @ documents.sums.T / (weights @ sizes)[:, None]
    rest = values.isel({over: 0}, drop=True)
    return xr.DataArray(
        means.reshape(-1, *rest.shape),
        dims=("draw", *rest.dims),
        coords={name: each for name, each in rest.coords.items() if name != "document"}
        | {DRAWN_FROM: _median(documents.effective())},
        name=values.name,
    )


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
    samples, level = draws.isel(draw=slice(1, None)).values, 0.025
    if DRAWN_FROM in draws.coords:
        count = float(np.min(draws[DRAWN_FROM]))
        if count <= 1:
            return np.nan, np.nan
        level = _expanded(level, count)
    low, high = np.quantile(samples, (level, 1 - level))
    return float(low), float(high)


def _median(values: NDArray[np.float64]) -> float:
    """Return the median of the values that are numbers; 1 where none is."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else 1.0


def _expanded(level: float, count: float) -> float:
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
        `robustness.statistics.paired`, whose interval is then that of paired data.
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
    documents = _Documents.of(rows[known], values["document"].values)
    if len(documents.sizes) > 1 and known.any():
        counts = np.broadcast_to(documents.sizes.astype(np.float64), documents.sums.shape)
        confidence = 1 - 2 * _expanded((1 - level) / 2, _median(documents.effective()))
        for method in ("percentile", "BCa"):
            with warnings.catch_warnings(), np.errstate(invalid="ignore"):
                warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
                found = scipy.stats.bootstrap(
                    (documents.sums, counts),
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
