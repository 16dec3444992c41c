"""Labels of a sweep's readouts in figures and tables, and the choice of those that are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recipes.views import style
from robustness.files.metrics import MODAL_SHARE, READOUTS, own_metrics
from robustness.files.precision_floor import NEAR, floor_of

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
"""Axis label and panel title of the readouts that do not take them from the file."""

SHARES = ("agreement", "accuracy")
"""Readouts that lie between 0 and 1."""


def drawn_names(dataset: xr.Dataset) -> list[str]:
    """Return the readouts that a figure shows: the first two measured, and a user's own."""
    first = [metric.name for metric in READOUTS if metric.name in dataset][:2]
    return [*first, *own_metrics(dataset.data_vars)]


def tabulated_names(dataset: xr.Dataset) -> list[str]:
    """Return the readouts that a table shows: all that were measured."""
    known = [metric.name for metric in READOUTS if metric.name in dataset]
    last = [MODAL_SHARE.name] if MODAL_SHARE.name in dataset else []
    return [*known, *own_metrics(dataset.data_vars), *last]


def is_difference(dataset: xr.Dataset) -> bool:
    """Whether a dataset is a paired difference: one file less another, or less an intervention."""
    return "difference" in dataset.attrs


def label_and_title(dataset: xr.Dataset, name: str) -> tuple[str, str]:
    """Return the axis label and the panel title of a readout."""
    label, title = LABELS.get(name) or _described(dataset[name])
    if is_difference(dataset):
        return f"Δ {_with_unit(dataset[name])}", title
    return label, title


def _described(values: xr.DataArray) -> tuple[str, str]:
    """Return the label and the title of a metric of a user's own."""
    return _with_unit(values), str(values.attrs.get("long_name", values.name))


def _with_unit(values: xr.DataArray) -> str:
    unit = values.attrs.get("units", "1")
    name = "KL" if values.name == "kl" else str(values.name)
    return name if unit == "1" else f"{name} [{unit}]"


def mark_floor(axis: Axes, dataset: xr.Dataset) -> None:
    """Shade the KL that is near the floor of half precision, if an axis reaches so low."""
    floor = floor_of(dataset)
    if floor is None or axis.get_ylim()[0] > NEAR * floor:
        return
    low, high = axis.get_ylim()
    label = f"less than {NEAR} floors of {dataset.attrs.get('dtype', 'half precision')}"
    axis.axhspan(low, min(high, NEAR * floor), color="grey", alpha=0.15, linewidth=0, label=label)
    axis.set_ylim(low, high)


def colour(image: AxesImage, values: xr.DataArray, name: str, *, difference: bool) -> None:
    """Scale the colours of a heat map to all of some values; a difference is centred on zero."""
    low, high = float(values.min()), float(values.max())
    if difference:
        style.diverging_colours(image, max(-low, high))
    elif name == "kl" and high > 0:
        # The KL of different layers spans orders of magnitude.
        style.logarithmic_colours(image, float(values.where(values > 0).min()), high)
    elif np.isfinite(low):
        image.set_clim(low, high)


def name_layers(axis: Axes, layers: np.ndarray) -> None:
    """Label both axes of a heat map with the layers that were measured, perhaps not all."""
    from matplotlib.ticker import FixedLocator

    for side in (axis.xaxis, axis.yaxis):
        if len(layers) <= style.MOST_TICKS:
            side.set_major_locator(FixedLocator(range(len(layers))))
        # A heat map's axis counts cells; matplotlib may put ticks beyond them.
        side.set_major_formatter(
            lambda at, _: str(layers[int(at)]) if 0 <= at < len(layers) else ""
        )
