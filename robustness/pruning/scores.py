"""Scores: how much worse a model is without what a candidate leaves out, by sequence."""

import xarray as xr

from robustness.files.kinds.searches import HELD_OUT, SEARCHED


def scores(dataset: xr.Dataset) -> xr.DataArray:
    """Return the score of every candidate of a search in every sequence.

    Parameters
    ----------
    dataset : Dataset
        Dataset of a search.

    Returns
    -------
    DataArray
        KL from the clean model, or the rise of the loss where that is the objective, in nats,
        (candidate, sequence); NaN where a candidate was not measured. The smaller, the better.
    """
    if dataset.attrs["objective"] == "kl":
        return dataset["kl"]
    return rises(dataset)


def rises(dataset: xr.Dataset) -> xr.DataArray:
    """Return the loss of every candidate less that of the clean model, (candidate, sequence)."""
    rise = dataset["loss"] - dataset["clean_loss"]
    # The coordinates of both sides stay; xarray drops the attributes.
    return rise.rename("rise").assign_attrs(units="nat", long_name="rise of the loss")


def searched(values: xr.DataArray) -> xr.DataArray:
    """Return values (…, sequence) of the text that candidates were chosen on."""
    return _part(values, SEARCHED)


def held_out(values: xr.DataArray) -> xr.DataArray:
    """Return values (…, sequence) of the text that the chosen candidates are judged on."""
    return _part(values, HELD_OUT)


def _part(values: xr.DataArray, part: str) -> xr.DataArray:
    return values.isel(sequence=values["part"].values == part)
