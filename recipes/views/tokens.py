"""Views of token files of sweeps: readouts by the position of the predicting token."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recipes.views import readouts, style
from robustness.files.sequences import counted_positions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BINS = 32
"""Maximum number of bins of positions."""


def figure(dataset: xr.Dataset) -> Figure:
    """Draw two readouts over layers and positions, one row of heat maps for each intervention."""
    shown, names = readouts.drawn_names(dataset), dataset["intervention"].values
    figure, axes = style.panels(len(names), len(shown), (6, 3.8))
    # Rounded up, since rounding down would give more bins.
    width = ceil(dataset.sizes["token"] / MOST_BINS)
    means = {}
    for name in shown:
        means[name] = _binned(dataset[name], counted_positions(dataset, name), width)
    for row, intervention in zip(axes, names, strict=True):
        for axis, name in zip(row, shown, strict=True):
            values = means[name].sel(intervention=intervention)
            image = style.heat_map(axis, values, "layer", "token")
            count, layers = values.sizes["token"], values["layer"].values
            image.set_extent((0, count * width, -0.5, len(layers) - 0.5))
            readouts.colour(image, means[name], name, difference=False)
            if len(layers) <= style.MOST_TICKS:
                axis.set_yticks(range(len(layers)), layers)
            label, title = readouts.label_and_title(dataset, name)
            axis.set_xlabel("position of the token that predicts")
            axis.set_title(f"{intervention}: {title}", fontsize="medium")
            figure.colorbar(image, ax=axis, label=label)
    return figure


def _binned(values: xr.DataArray, counts: xr.DataArray, width: int) -> xr.DataArray:
    """Return means over sequences and over bins of `width` positions, of the counted tokens."""
    total = values.where(counts, 0).sum("sequence", skipna=False).transpose(..., "token")
    starts = np.arange(0, values.sizes["token"], width)
    sums = np.add.reduceat(total.values, starts, axis=-1)
    numbers = np.add.reduceat(counts.sum("sequence").values, starts, axis=-1)
    # Positions that are never counted, such as the first and the last, have no mean.
    with np.errstate(invalid="ignore"):
        return total.isel(token=starts).copy(data=sums / numbers)
