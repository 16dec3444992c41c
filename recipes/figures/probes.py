"""Figures of probes on activations: word in context, and suffixes."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recipes.evidence.curves import position
from recipes.figures.panels import PANEL, Models, name_of, with_legend
from recipes.recipe import SUFFIX, WIC
from recipes.views import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 8
"""Number of panels side by side in the figure of all effects."""


def word_in_context(models: Models) -> Figure:
    """Draw the accuracy of the pair probe over depth."""
    figure, axes = style.panels(1, 1, PANEL)
    axis = axes[0, 0]
    for index, files in enumerate(models):
        data = files[WIC].sel(probe="pair")
        place = position(data["accuracy"])
        style.bounded_line(axis, place, data, "accuracy", index, name_of(files))
    style.zero_line(axis, 0.5)
    axis.set_xlabel("relative depth")
    axis.set_ylabel("share of test pairs told right")
    return with_legend(figure, models)


def suffix_probes(models: Models) -> Figure:
    """Draw the accuracy of neurons, groups and the model, and the strongest neurons' effects."""
    figure, axes = style.panels(len(models), 2, (6, 3.8))
    for (accuracy, strongest), files in zip(axes, models, strict=True):
        data = files[SUFFIX]
        _draw_accuracy(accuracy, data)
        accuracy.set_title(name_of(files), fontsize="medium")
        # Neurons are in the order of their ranks; a model may lack one that raises or lowers.
        raising = np.flatnonzero(data["shift"].values > 0)[:1]
        lowering = np.flatnonzero(data["shift"].values < 0)[:1]
        _draw_effects(strongest, data.isel(neuron=np.concatenate([raising, lowering])))
    axes[0, 0].legend(frameon=False, fontsize="small")
    return figure


def _draw_accuracy(axis: Axes, data: xr.Dataset) -> None:
    ordered = data.isel(neuron=np.argsort(-data["single_accuracy"].values))
    rises = ordered["shift"].values > 0
    for index, (label, rows) in enumerate((("raises", rises), ("lowers", ~rises)), 1):
        places, chosen = np.flatnonzero(rows) + 1, ordered.isel(neuron=rows)
        label = f"single neuron, {label} the suffix"
        if places.size:
            style.bounded_points(axis, places, chosen, "single_accuracy", index, label)
    group = data.sel(kind="mixed")
    style.bounded_line(axis, group["size"], group, "accuracy", 0, "the best together")
    model = float(data["model_accuracy"].sel(reading="hard"))
    axis.axhline(model, color=style.COLOURS[1], linestyle=":", label="the model's top-1")
    style.zero_line(axis, 0.5)
    axis.set_xlabel("neurons, by accuracy; size of the group")
    axis.set_ylabel("share of windows told right")


def _draw_effects(axis: Axes, data: xr.Dataset) -> None:
    """Draw histograms of effects on logits, one above the other for each neuron."""
    for bottom in range(data.sizes["neuron"]):
        neuron = data.isel(neuron=bottom)
        for index, tokens in enumerate(data["tokens"].values):
            histogram = neuron["effect"].sel(tokens=tokens)
            height = histogram / float(neuron["effect"].max()) * 0.9 + bottom
            # One entry in the legend for all neurons.
            label = None if bottom else _name_of_tokens(data, str(tokens))
            _fill(axis, histogram["bin"], bottom, height, index, label)
        kind = "raises" if float(neuron["shift"]) > 0 else "lowers"
        name = f"{int(neuron['layer'])}.{int(neuron['index'])} {kind}"
        axis.text(float(data["bin"][0]), bottom + 0.7, name, fontsize="small")
    axis.set_yticks([])
    axis.set_xlabel("effect on logits")
    axis.legend(frameon=False, fontsize="small", loc="upper right")


def effects(models: Models) -> Figure:
    """Draw every neuron's effect on the logits of tokens with the suffix, and of other tokens."""
    data = models[0][SUFFIX]
    rows = ceil(data.sizes["neuron"] / COLUMNS)
    figure = style.new_figure(1.6 * COLUMNS, 1.25 * rows + 0.5)
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    for at, axis in zip(range(data.sizes["neuron"]), axes, strict=False):
        _draw_effect(axis, data.isel(neuron=at))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_effect(axis: Axes, neuron: xr.Dataset) -> None:
    for index, tokens in enumerate(neuron["tokens"].values):
        line = neuron["effect"].sel(tokens=tokens)
        label = _name_of_tokens(neuron, str(tokens))
        _fill(axis, line["bin"], 0, line, index, label)
    sign = "+" if float(neuron["shift"]) > 0 else "-"
    axis.set_title(f"{int(neuron['layer'])}.{int(neuron['index'])} {sign}", fontsize="small")


def _fill(
    axis: Axes, x: xr.DataArray, low: float, high: xr.DataArray, index: int, label: str | None
) -> None:
    """Fill a histogram upwards from a height."""
    colour = style.COLOURS[index]
    axis.fill_between(x, low, high, step="mid", alpha=0.55, color=colour, linewidth=0, label=label)


def _name_of_tokens(data: xr.Dataset, tokens: str) -> str:
    return f"-{data.attrs['suffix']}" if tokens == "with" else "other tokens"
