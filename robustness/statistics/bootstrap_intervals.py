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
    """Bootstrap interval of the mean over sequences, whole documents drawn at a time.

    scipy's bias-corrected and accelerated interval (Efron 1987), which need not be symmetric: the
    one to look at where few documents are far from the rest. Its percentile interval where that is
    not defined, as for values that are all alike. It is wider where documents are few, as
    `uncertainty.interval` is.

    Parameters
    ----------
    values : DataArray
        With a dimension `sequence` and a coordinate `document` along it; perhaps a difference, from
        `robustness.statistics.paired`, whose interval is then that of paired data.
    level : float
        Confidence.
    draws : int
        Number of samples.
    seed : int
        Seed of the samples.

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
    documents = Documents.of(rows[known], values["document"].values)
    if len(documents.sizes) > 1 and known.any():
        ends[known] = _bootstrap_ends(documents, level, draws, seed)
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
    """Round positive numbers to two significant digits; 1 for what is no number."""
    known = np.where(np.isfinite(numbers), numbers, 1.0)
    digit = 10.0 ** (np.floor(np.log10(known)) - 1)
    return np.round(known / digit) * digit


def _bca_ends(
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    confidence: float,
    draws: int,
    seed: int,
) -> NDArray[np.float64]:
    """Return the ends of BCa intervals of ratios of sums (mean, document), else of percentiles."""
    ends = np.full((len(sums), 2), np.nan)
    # The later method wins where it is defined.
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
        ends = np.where(np.isfinite(both), both, ends)
    return ends


def intervals(dataset: xr.Dataset, *, level: float = LEVEL, seed: int = 0) -> xr.Dataset:
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
