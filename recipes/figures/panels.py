"""Panels of the paper's figures: curves over relative depth, of one model or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from recipes.evidence.curves import position
from recipes.evidence.files import Absent, Files
from recipes.recipe import NEURONS
from recipes.views import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (4.6, 3.5)
"""Width and height of a panel in inches."""

MOST_COLUMNS = 4
"""Maximum number of panels side by side, one for each model."""

Models = Sequence[Files]
"""Files of the models in a figure."""


def panel_each(models: Models, size: tuple[float, float] = PANEL) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel for each model, under the model's name."""
    columns = min(MOST_COLUMNS, len(models))
    figure, axes = style.panels(ceil(len(models) / columns), columns, size)
    for axis in axes.flat[len(models) :]:
        axis.set_axis_off()
    chosen = list(axes.flat[: len(models)])
    if len(models) > 1:
        for axis, files in zip(chosen, models, strict=True):
            axis.set_title(name_of(files), fontsize="medium")
    return figure, chosen


def one_line_each(
    models: Models, read: Callable[[Files], xr.DataArray], label: str, low: float | None = None
) -> Figure:
    """Return a figure of one panel with a line for each model, and the axis from `low` upwards."""
    figure, axes = style.panels(1, 1, (5.6, 3.8))
    for index, files in enumerate(models):
        curve(axes[0, 0], read(files), index, name_of(files))
    axes[0, 0].set_ylim(low)
    axes[0, 0].set_ylabel(label)
    return with_legend(figure, models)


def curve(axis: Axes, values: xr.DataArray, index: int, label: str, **options: Any) -> None:
    """Draw a curve over relative depth, with a 95 % band if it is a mean over sequences."""
    # Relative depth, so that models of different depth share an axis.
    style.curve(axis, position(values), values, index, label, markersize=3, **options)
    axis.set_xlabel("relative depth")


def make_logarithmic(axis: Axes) -> None:
    """Make an axis logarithmic, if any point on it is above 0."""
    # A logarithmic axis with nothing above 0 cannot be drawn.
    if any(np.any(np.asarray(line.get_ydata(), float) > 0) for line in axis.lines):
        axis.set_yscale("log")


def name_readout(axis: Axes, metric: str) -> None:
    """Label and scale the vertical axis of KL or of agreement."""
    if metric == "kl":
        make_logarithmic(axis)
        axis.set_ylabel("KL(clean ‖ intervened) [nat]")
    else:
        axis.set_ylim(0, 1)
        axis.set_ylabel("share of tokens with the clean top-1")


def with_layers(models: Models, span: int) -> Models:
    """Return the models that have at least `span` layers.

    Raises
    ------
    Absent
        If no model has.
    """
    deep = [files for files in models if files.layers >= span]
    if not deep:
        raise Absent(f"{models[0].layers} layers have no span of {span} blocks")
    return deep


def name_of(files: Files) -> str:
    """Return a model's name for a figure; a bare dollar sign would begin a formula."""
    return files.label.replace("$", r"\$")


def with_legend(figure: Figure, models: Models) -> Figure:
    """Add a legend of the models below the panels, if there are several."""
    if len(models) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False
        )
    return figure


def draw_classes(axis: Axes, files: Files, name: str) -> None:
    """Draw the shares of prediction and suppression neurons; `name` is a format for the class."""
    shares = files[NEURONS]["share"].sel(neuron_class=["prediction", "suppression"])
    for index, neuron_class in ((2, "prediction"), (1, "suppression")):
        label = name.format(neuron_class)
        curve(axis, shares.sel(neuron_class=neuron_class), index, label)
    # A model without such neurons would leave the axis without a height.
    axis.set_ylim(0, max(0.01, 1.1 * float(shares.max())))
