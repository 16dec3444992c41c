"""What the readouts of a sweep are called in figures and tables, and which of them are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recipes.views import style
from robustness.files.metrics import MODAL_SHARE, READOUTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

LABELS = {
    "kl": ("KL(clean ‖ intervened) [nat]", "Change of the prediction"),
    "agreement": ("share of tokens with the clean top-1", "Agreement with the clean model"),
    "loss": ("cross-entropy of the next token [nat]", "Loss"),
    "entropy": ("entropy of the prediction [nat]", "Entropy"),
    "accuracy": ("share of tokens with the right top-1", "Accuracy"),
}
"""Label of the axis and title of the panel of every readout."""

DIFFERENCES = {"loss": "loss [nat]", "entropy": "entropy [nat]", "kl": "KL [nat]"}
"""Names of readouts in the labels of their differences, where they have a unit."""

SHARES = ("agreement", "accuracy")
"""Readouts between 0 and 1."""


def drawn_names(dataset: xr.Dataset) -> list[str]:
    """Return the readouts that a figure shows: the first two of those that were measured."""
    return [metric.name for metric in READOUTS if metric.name in dataset][:2]


def tabulated_names(dataset: xr.Dataset) -> list[str]:
    """Return the readouts that a table shows: all that were measured."""
    return [metric.name for metric in (*READOUTS, MODAL_SHARE) if metric.name in dataset]


def is_difference(dataset: xr.Dataset) -> bool:
    """Whether a dataset is one file less another, or less one of its interventions."""
    return "difference" in dataset.attrs


def label_and_title(dataset: xr.Dataset, name: str) -> tuple[str, str]:
    """Return the label of a readout's axis and the title of its panel."""
    label, title = LABELS[name]
    if is_difference(dataset):
        return f"Δ {DIFFERENCES.get(name, name)}", title
    return label, title


def colour(image: AxesImage, values: xr.DataArray, name: str, *, difference: bool) -> None:
    """Give a heat map the scale that fits all of some values: of a difference, about zero."""
    low, high = float(values.min()), float(values.max())
    if difference:
        style.diverging_colours(image, max(-low, high))
    elif name == "kl" and high > 0:
        style.logarithmic_colours(image, float(values.where(values > 0).min()), high)
    elif np.isfinite(low):
        image.set_clim(low, high)


def name_layers(axis: Axes, layers: np.ndarray) -> None:
    """Label both axes of a heat map with layers, which may have been chosen one by one."""
    from matplotlib.ticker import FixedLocator

    for side in (axis.xaxis, axis.yaxis):
        if len(layers) <= style.MOST_TICKS:
            side.set_major_locator(FixedLocator(range(len(layers))))
        side.set_major_formatter(
            lambda at, _: str(layers[int(at)]) if 0 <= at < len(layers) else ""
        )
