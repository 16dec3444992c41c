"""Bootstrap intervals of means over sequences, bias-corrected and accelerated."""

import warnings

import numpy as np
import scipy  # its parts are loaded when they are used: a sweep needs none
import xarray as xr
from numpy.typing import NDArray

from robustness.statistics.documents import Documents
from robustness.statistics.uncertainty import DRAWS, LEVEL, expanded_percentile


def bootstrap(
    values: xr.DataArray, *, level: float = LEVEL, draws: int = DRAWS - 1, seed: int = 0
) -> xr.DataArray:
    """Bootstrap interval of the mean over sequences; whole documents are resampled.

    The interval is scipy's bias-corrected and accelerated one (Efron 1987). It need not be
    symmetric, which matters where a few documents are far from the rest. Where it is not defined,
    as for values that are all alike, scipy's percentile interval takes its place. Both are widened
    where documents are few, as `uncertainty.interval` is.

    Parameters
    ----------
    values : DataArray
        Array with a dimension `sequence` and a coordinate `document` along it. A difference from
        `robustness.statistics.paired` gives the interval of paired data.
    level : float
        Confidence level.
    draws : int
        Number of bootstrap samples.
    seed : int
        Seed of the samples.

    Returns
    -------
    DataArray
        Interval without `sequence`, with `end` (low, high) last; NaN where there are fewer than two
        documents, or a value is missing.
    """
    rest = values.isel(sequence=0, drop=True)
    numbers = values.transpose(..., "sequence").values.astype(np.float64)
    rows = numbers.reshape(-1, numbers.shape[-1])
    finite = np.isfinite(rows).all(1)
    ends = np.full((len(rows), 2), np.nan)
    documents = Documents.of(rows[finite], values["document"].values)
    if len(documents.sizes) > 1 and finite.any():
        ends[finite] = _bootstrap_ends(documents, level, draws, seed)
    return xr.DataArray(
        ends.reshape(*rest.shape, 2),
        dims=(*rest.dims, "end"),
        coords={**rest.coords, "end": ["low", "high"]},
        name=values.name,
    )


def _bootstrap_ends(
    documents: Documents, level: float, draws: int, seed: int
) -> NDArray[np.float64]:
    """Return the ends of the bootstrap intervals of means, (mean, end)."""
    counts = np.broadcast_to(documents.sizes.astype(np.float64), documents.sums.shape)
    # Means of about as many effective documents share a call. What the interval of a mean is must
    # not depend on the other means: tables and figures ask for different ones together.
    effective = _two_digits(documents.effective())
    ends = np.full((len(documents.sums), 2), np.nan)
    for count in np.unique(effective[effective > 1]):
        rows = effective == count
        confidence = 1 - 2 * expanded_percentile((1 - level) / 2, count)
        ends[rows] = _bca_ends(documents.sums[rows], counts[rows], confidence, draws, seed)
    return ends


def _two_digits(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round positive numbers to two significant digits; NaN and infinity become 1."""
    finite = np.where(np.isfinite(numbers), numbers, 1.0)
    digit = 10.0 ** (np.floor(np.log10(finite)) - 1)
    return np.round(finite / digit) * digit


def _bca_ends(
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    confidence: float,
    draws: int,
    seed: int,
) -> NDArray[np.float64]:
    """Return the ends of BCa intervals of means, or of percentile intervals where BCa has none.

    A mean is a ratio of sums over documents: of the values (mean, document), and of their number.
    """
    ends = np.full((len(sums), 2), np.nan)
    # The later method wins where it is defined.
    for method in ("percentile", "BCa"):
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):
            warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
            confidence_interval = scipy.stats.bootstrap(
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
        by_method = np.stack([confidence_interval.low, confidence_interval.high], -1)
        ends = np.where(np.isfinite(by_method), by_method, ends)
    return ends


def intervals(dataset: xr.Dataset, *, level: float = LEVEL, seed: int = 0) -> xr.Dataset:
    """Return the means of a dataset's variables over sequences, with bootstrap intervals.

    Returns
    -------
    Dataset
        Every variable NAME that has sequences, averaged over them, and `NAME_low` and `NAME_high`.
    """
    variables = {}
    for name, values in dataset.data_vars.items():
        if "sequence" in values.dims and values.dtype.kind == "f":
            ends = bootstrap(values, level=level, seed=seed)
            variables[str(name)] = values.mean("sequence", skipna=False, keep_attrs=True)
            for end in ("low", "high"):
                attrs = {**values.attrs, "long_name": f"{end} end of the {level:.0%} interval"}
                variables[f"{name}_{end}"] = ends.sel(end=end, drop=True).assign_attrs(attrs)
    return xr.Dataset(variables, attrs=dataset.attrs)
