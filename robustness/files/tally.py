"""Counts of the most likely tokens of every run, of which most are 0."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xarray as xr
from numpy.typing import DTypeLike, NDArray

from robustness.files.damage import damaged, shown_value

TALLY_GROUP = "tally"
"""Name of the group with the counts that a run still needs to continue or to merge."""


def modal_share(tally: NDArray[np.int32], dtype: DTypeLike) -> NDArray[Any]:
    """Return the share of the most frequent token of counts (run, token); NaN where all are 0."""
    # The clip avoids a division by 0; the share of 0 that it gives becomes NaN below.
    share = (tally.max(1) / tally.sum(1).clip(1)).astype(dtype)
    share[share == 0] = np.nan
    return share


def sparse_counts(tally: NDArray[np.int32]) -> xr.Dataset:
    """Return counts (run, token) as a dataset of those that are not 0."""
    entries = np.flatnonzero(tally)
    return xr.Dataset(
        {"entry": ("cell", entries), "count": ("cell", tally.flat[entries])},
        attrs={"shape": tally.shape, "long_name": "counts that are not 0"},
    )


def dense_counts(path: Path, counts: xr.Dataset) -> NDArray[np.int32]:
    """Return counts (run, token) from the dataset that `sparse_counts` made of them.

    Raises
    ------
    Refusal
        If the dataset read from `path` is not such a dataset, or takes more than memory holds.
    """
    entries, values = counts["entry"].values, counts["count"].values
    shape = _checked_shape(path, counts.attrs["shape"])
    for name, numbers in (("places", entries), ("counts", values)):
        if numbers.dtype.kind not in "iu" or numbers.ndim != 1 or len(numbers) != len(entries):
            raise damaged(path, f"the {name} of its counts are not whole numbers in a row")
    if entries.size and (entries.min() < 0 or entries.max() >= math.prod(shape)):
        raise damaged(path, "its counts are of tokens that there are not")
    if len(np.unique(entries)) < len(entries) or (values < 0).any():
        raise damaged(path, "its counts are below 0, or of a token twice")
    tally = np.zeros(shape, np.int32)
    tally.flat[entries] = values
    return tally


def _checked_shape(path: Path, shape: Any) -> tuple[int, ...]:
    sizes: tuple[int, ...] = ()
    if np.asarray(shape).dtype.kind in "iu":
        sizes = tuple(np.atleast_1d(shape).tolist())
    if len(sizes) != 2 or min(sizes) < 1:
        raise damaged(path, f"its counts are of the shape {shown_value(shape)}")
    if 4 * math.prod(sizes) > psutil.virtual_memory().available // 2:
        raise damaged(path, f"its counts are {shown_value(sizes)}, more than memory holds")
    return sizes
