"""Sequences of a dataset: their coordinates, which of them are measured, and means over tokens."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal
from robustness.files.metrics import METRICS

COUNTED = "tokens_counted"
"""The coordinate of sequences that are not of one length."""


def sequence_coords(
    document: NDArray[np.int64], first: int = 0, counted: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Return the coordinates of sequences.

    Parameters
    ----------
    document : array of shape (sequence,)
        The document that each was cut from.
    first : int
        The index of the first of them.
    counted : array of shape (sequence,), optional
        Over how many tokens their means are, where that is not the same for all.
    """
    described = {"long_name": "index of the document in the corpus"}
    found: dict[str, Any] = {
        "sequence": np.arange(first, first + len(document)),
        "document": ("sequence", document, described),
    }
    if counted is not None:
        weighs = {"units": "1", "long_name": "tokens that the means of a sequence are over"}
        found[COUNTED] = ("sequence", counted, weighs)
    return found


def mean_over_tokens(values: xr.DataArray) -> xr.DataArray:
    """Return the mean over tokens, (…), of values that are means over sequences, (…, sequence).

    Where sequences are documents, `values.mean("sequence")` is the mean over documents instead, of
    which a short one weighs as much as a long one. Where they are windows, the two are the same.
    """
    if COUNTED not in values.coords:
        return values.mean("sequence", skipna=False)
    weights = values[COUNTED]
    total: xr.DataArray = (values * weights).sum("sequence", skipna=False) / weights.sum()
    return total.drop_vars(COUNTED, errors="ignore")


def measured_sequences(dataset: xr.Dataset) -> xr.Dataset:
    """Return the sequences of a file that are measured: all, unless its run is not finished.

    Of one with values of single tokens, their means.
    """
    if "token" in dataset.dims:
        dataset = _over_tokens(dataset)
    if "sequences_done" not in dataset.attrs:
        return dataset
    done = int(dataset.attrs["sequences_done"])
    if not done:
        raise Refusal("nothing is measured yet: the run was stopped in its first batch")
    if "batch" in dataset.dims:
        return dataset.isel(batch=slice(0, done // int(dataset.attrs["batch_sequences"])))
    if "sequence" not in dataset.dims:
        raise Refusal("the run is not finished, and what it measures is known when all of it is")
    return dataset.isel(sequence=slice(0, done))


def counted_positions(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """Return which positions a readout of single tokens is of, (sequence, token)."""
    which = "predicted" if name.removeprefix("clean_") in {"loss", "accuracy"} else "compared"
    if which not in dataset:
        raise Refusal(
            "the file does not say which positions count, as an early version left it: measure it "
            "anew with `fresh`"
        )
    return dataset[which] == 1


def _over_tokens(dataset: xr.Dataset) -> xr.Dataset:
    """Return means over the positions that count, of which one without a number is no number."""
    found = {}
    for name, values in dataset.data_vars.items():
        if name in METRICS:
            counts = counted_positions(dataset, str(name))
            total = values.where(counts, 0).sum("token", skipna=False, dtype=np.float64)
            mean = total / counts.sum("token")
            found[name] = mean.astype(values.dtype).assign_attrs(values.attrs)
    return dataset.drop_dims("token").assign(found)
