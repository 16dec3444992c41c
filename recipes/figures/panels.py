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
"""Maximum number of panels beside one another, where every model has one."""

Models = Sequence[Files]


def panel_each(models: Models, size: tuple[float, float] = PANEL) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for every model, named."""
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
    """Return a figure of one panel with a line for every model, from `low` upwards."""
    figure, axes = style.panels(1, 1, (5.6, 3.8))
    for index, files in enumerate(models):
        curve(axes[0, 0], read(files), index, name_of(files))
    axes[0, 0].set_ylim(low)
    axes[0, 0].set_ylabel(label)
    return with_legend(figure, models)


def curve(axis: Axes, values: xr.DataArray, index: int, label: str, **options: Any) -> None:
    """Draw a curve over relative depth, with a 95 % band where it is a mean over sequences."""
    style.curve(axis, position(values), values, index, label, markersize=3, **options)
    axis.set_xlabel("relative depth")


def make_logarithmic(axis: Axes) -> None:
    """Make an axis logarithmic, if there is anything above 0 on it."""
    # A logarithmic axis with nothing above 0 cannot be drawn.
    if any(np.any(np.asarray(line.get_ydata(), float) > 0) for line in axis.lines):
        axis.set_yscale("log")


def name_readout(axis: Axes, metric: str) -> None:
    """Name the axis of KL or of agreement, and give it its scale."""
    if metric == "kl":
        make_logarithmic(axis)
        axis.set_ylabel("KL(clean ‖ intervened) [nat]")
    else:
        axis.set_ylim(0, 1)
        axis.set_ylabel("share of tokens with the clean top-1")


def with_layers(models: Models, span: int) -> Models:
    """Return the models that have so many layers.

    Raises
    ------
    Absent
        If none has.
    """
    able = [files for files in models if files.layers >= span]
    if not able:
        raise Absent(f"{models[0].layers} layers have no span of {span} blocks")
    return able


def name_of(files: Files) -> str:
    """Return what a model is called in a figure, where a dollar sign would begin a formula."""
    return files.label.replace("$", r"\$")


def with_legend(figure: Figure, models: Models) -> Figure:
    """Name the models below the panels, where there are several."""
    if len(models) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False
        )
    return figure


def draw_classes(axis: Axes, files: Files, name: str) -> None:
    """Draw the shares of prediction and suppression neurons; `name` has a place for the class."""
    shares = files[NEURONS]["share"].sel(neuron_class=["prediction", "suppression"])
    for index, neuron_class in ((2, "prediction"), (1, "suppression")):
        label = name.format(neuron_class)
        curve(axis, shares.sel(neuron_class=neuron_class), index, label)
    # Where a model has no such neurons, the axis has a height all the same.
    axis.set_ylim(0, max(0.01, 1.1 * float(shares.max())))
