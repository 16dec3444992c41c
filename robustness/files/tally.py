"""Counts of the most likely tokens of every run, of which most are 0."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import DTypeLike, NDArray


def modal_share(tally: NDArray[np.int32], dtype: DTypeLike) -> NDArray[Any]:
    """Return the share of the most frequent token, of counts (run, token); NaN where none is."""
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
