"""Shapes of curves over layers or depths, computed for all bootstrap draws at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from recipes.evidence.files import Absent, Files
from robustness.statistics.uncertainty import draw_coordinates, interval_of_rank_correlation

FEWEST_LAYERS = 7
"""Minimum number of layers of a model with an interior: three layers, and two at either end."""


def interior(files: Files) -> slice:
    """Return the layers 2 to L - 3, away from both ends, as a slice for `isel`."""
    if files.layers < FEWEST_LAYERS:
        raise Absent(f"{files.layers} layers have no interior: {FEWEST_LAYERS} are needed")
    return slice(2, files.layers - 2)


def with_interior(models: Sequence[Files]) -> list[Files]:
    """Return the models that have an interior.

    Raises
    ------
    Absent
        If none has.
    """
    deep = [files for files in models if files.layers >= FEWEST_LAYERS]
    if not deep:
        raise Absent(f"no model has an interior: {FEWEST_LAYERS} layers are needed")
    return deep


def part(values: xr.DataArray, begin: float, end: float) -> xr.DataArray:
    """Return the part of a curve between two relative depths, both included."""
    dim = along(values)
    place = position(values)
    # Depths that should be equal differ in their last digits, as 1/3 and 8/24 do.
    chosen = values.isel({dim: np.flatnonzero((place >= begin - 1e-9) & (place <= end + 1e-9))})
    if not chosen.sizes[dim]:
        raise Absent(
            f"of {values.sizes[dim]} places along {dim} none is between {begin:.0%} and {end:.0%}"
        )
    return chosen


def along(values: xr.DataArray) -> str:
    """Return the dimension of a curve: layer or depth."""
    return "depth" if "depth" in values.dims else "layer"


def position(values: xr.DataArray) -> Any:
    """Return the relative depth of every point of a curve, 0 to 1."""
    if "relative_depth" in values.coords:
        return values["relative_depth"].values
    labels = values[along(values)].values
    return labels / max(1, labels.max())


def place_of_largest(values: xr.DataArray) -> xr.DataArray:
    """Return the relative depth of a curve's maximum; NaN if any of its points is not finite."""
    dim = along(values)
    # argmax refuses NaN; where a point is missing, the place is made NaN below.
    where = values.fillna(-np.inf).argmax(dim)
    place = xr.DataArray(position(values)[where.values].astype(float), dims=where.dims)
    finite = np.isfinite(values.transpose(*where.dims, dim).values).all(-1)
    return place.where(xr.DataArray(finite, dims=where.dims)).assign_coords(
        draw_coordinates(values)
    )


def change(values: xr.DataArray, begin: float, end: float) -> xr.DataArray:
    """Return the change of a curve between two relative depths."""
    dim, chosen = along(values), part(values, begin, end)
    if chosen.sizes[dim] < 2:
        raise Absent(f"of {values.sizes[dim]} places along {dim} one is from {begin:.0%} on")
    return chosen.isel({dim: -1}, drop=True) - chosen.isel({dim: 0}, drop=True)


def rank_correlation(values: xr.DataArray) -> xr.DataArray:
    """Return Spearman's rank correlation of a curve with layer or depth."""
    dim = along(values)
    rest = [name for name in values.dims if name != dim]
    complete = values.notnull().all(rest).values
    if complete.sum() < 3:
        raise Absent(f"{int(complete.sum())} points have no rank correlation: 3 are needed")
    # Not scipy's spearmanr, which would correlate all draws with one another too.
    ranks = scipy.stats.rankdata(values.transpose(dim, ...).values[complete], axis=0)
    ranks = ranks - ranks.mean(0)
    order = np.arange(len(ranks)) - (len(ranks) - 1) / 2
    spread = np.sqrt((ranks**2).sum(0) * (order**2).sum())
    product = np.tensordot(order, ranks, axes=(0, 0))
    correlation = np.divide(product, spread, out=np.full_like(spread, np.nan), where=spread > 0)
    return xr.DataArray(correlation, dims=rest, coords=draw_coordinates(values))


def rank_correlation_of_models(
    values: Sequence[float], order: Sequence[float]
) -> tuple[float, float, float]:
    """Return Spearman's rank correlation over models, and its 95 % interval."""
    count = len(values)
    if count < 4:
        raise Absent(f"{count} models have no interval of a rank correlation: 4 are needed")
    if len(set(order)) < 2:
        raise Absent("the models do not differ in what they are ordered by")
    correlation = float(scipy.stats.spearmanr(values, order).statistic)
    return correlation, *interval_of_rank_correlation(correlation, count)
