"""Sequences of a dataset: their coordinates, the measured ones, and means over their tokens."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal
from robustness.files.metrics import TokenMetric, metric_of

CLEAN_LOSS = "clean_loss"
"""Name of the variable with the loss of the clean model."""

COUNTED = "tokens_counted"
"""Name of the coordinate with the number of tokens in the means of a sequence."""


def sequence_coords(
    document: NDArray[np.int64], first: int = 0, counted: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Return the coordinates of sequences.

    Parameters
    ----------
    document : array of shape (sequence,)
        Index of the document that each sequence was cut from.
    first : int
        Index of the first sequence.
    counted : array of shape (sequence,), optional
        Number of tokens in the means of each sequence, where it is not the same for all.
    """
    of_document = {"long_name": "index of the document in the corpus"}
    coords: dict[str, Any] = {
        "sequence": np.arange(first, first + len(document)),
        "document": ("sequence", document, of_document),
    }
    if counted is not None:
        of_count = {"units": "1", "long_name": "tokens that the means of a sequence are over"}
        coords[COUNTED] = ("sequence", counted, of_count)
    return coords


def mean_over_tokens(values: xr.DataArray) -> xr.DataArray:
    """Return the mean over tokens, (…), of values that are means of sequences, (…, sequence).

    Where sequences are documents, `values.mean("sequence")` is the mean over documents instead, in
    which a short document weighs as much as a long one. Where sequences are windows, the two are
    the same.
    """
    if COUNTED not in values.coords:
        return values.mean("sequence", skipna=False)
    weights = values[COUNTED]
    total: xr.DataArray = (values * weights).sum("sequence", skipna=False) / weights.sum()
    return total.drop_vars(COUNTED, errors="ignore")


def measured_sequences(dataset: xr.Dataset) -> xr.Dataset:
    """Return the measured sequences of a file: all of them, unless its run is unfinished.

    Values of single tokens are averaged over the tokens of a sequence.

    Raises
    ------
    Refusal
        If nothing is measured yet.
    """
    if "token" in dataset.dims:
        dataset = _over_tokens(dataset)
    if dataset.attrs.get("measurement") == "search" and CLEAN_LOSS in dataset:
        return _reached(dataset)
    if "sequences_done" not in dataset.attrs:
        return dataset
    done = int(dataset.attrs["sequences_done"])
    if not done:
        raise Refusal("nothing is measured yet: the run was stopped in its first batch")
    # CKA is measured on batches of sequences, of which only whole ones are done.
    if "batch" in dataset.dims:
        return dataset.isel(batch=slice(0, done // int(dataset.attrs["batch_sequences"])))
    if "sequence" not in dataset.dims:
        raise Refusal("the run is unfinished, and has no result before it ends: run it again")
    return dataset.isel(sequence=slice(0, done))


def _reached(dataset: xr.Dataset) -> xr.Dataset:
    """Return the sequences that a search has reached: races often end before the text does."""
    reached = np.isfinite(dataset[CLEAN_LOSS].values)
    if not reached.any():
        raise Refusal("nothing is measured yet: the search was stopped in its first batch")
    return dataset.isel(sequence=reached)


def counted_positions(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """Return the mask (sequence, token) of the positions at which a readout is measured."""
    metric = metric_of(name, dataset[name].attrs)
    which = metric.tokens if isinstance(metric, TokenMetric) else "compared"
    if which not in dataset:
        raise Refusal(
            "the file is of an early version, and does not say which positions count: measure it "
            "anew with `fresh`"
        )
    return dataset[which] == 1


def _over_tokens(dataset: xr.Dataset) -> xr.Dataset:
    """Return means over the positions that count; NaN where the value of one of them is NaN."""
    means = {}
    for name, values in dataset.data_vars.items():
        if metric_of(str(name), values.attrs):
            counts = counted_positions(dataset, str(name))
            # 0 elsewhere, so that only a NaN at a position that counts makes the mean NaN.
            total = values.where(counts, 0).sum("token", skipna=False, dtype=np.float64)
            mean = total / counts.sum("token")
            means[name] = mean.astype(values.dtype).assign_attrs(values.attrs)
    return dataset.drop_dims("token").assign(means)
