"""Views of suffix probes: how well neurons, alone and in groups, predict a suffix as next token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recipes.views import style
from recipes.views.sections import Section, bounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_EFFECTS = 6
"""Maximum number of neurons whose effect on logits is drawn."""


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield the accuracy of the model itself, of single neurons, and of groups of neurons."""
    yield Section("the model itself", "reading", bounded("accuracy", dataset, "model_accuracy"))
    singles = {
        "layer": dataset["layer"],
        "index": dataset["index"],
        "shift": dataset["shift"],
        **bounded("accuracy", dataset, "single_accuracy"),
    }
    yield Section("single neurons", "neuron", singles)
    groups: dict[str, xr.DataArray] = {}
    for kind in dataset["kind"].values:
        groups |= bounded(str(kind), dataset.sel(kind=kind), "accuracy")
    yield Section("groups of the best neurons, ranked on dev", "size", groups)


def figure(dataset: xr.Dataset) -> Figure:
    """Draw the accuracy of groups and of single neurons, and the first neurons' logit effects."""
    figure, axes = style.panels(1, 3, (13 / 3, 4.6))
    groups, singles, effects = axes[0]
    _draw_groups(groups, dataset)
    _draw_singles(singles, dataset)
    _draw_effects(effects, dataset)
    return figure


def _draw_groups(axis: Axes, dataset: xr.Dataset) -> None:
    for index, kind in enumerate(dataset["kind"].values):
        chosen = dataset.sel(kind=kind)
        style.bounded_line(axis, chosen["size"], chosen, "accuracy", index, str(kind))
    for reading, dashes in zip(dataset["reading"].values, ("-", "--", ":"), strict=True):
        chosen = dataset.sel(reading=reading)
        level = float(chosen["model_accuracy"])
        label = f"model, {reading}"
        axis.axhline(level, color="black", linewidth=1, linestyle=dashes, label=label)
        low, high = float(chosen["model_accuracy_low"]), float(chosen["model_accuracy_high"])
        axis.axhspan(low, high, color="black", alpha=0.06, linewidth=0)
    axis.set_ylabel("share of test windows told right")
    axis.set_title("Groups of the best neurons")
    axis.legend(frameon=False, fontsize="x-small", ncols=2)
    style.whole_numbers(axis, "neurons in the group")


def _draw_singles(axis: Axes, dataset: xr.Dataset) -> None:
    shift = dataset["shift"].values
    for index, (name, rows) in enumerate((("raises", shift > 0), ("lowers", shift < 0))):
        chosen, label = dataset.isel(neuron=rows), f"{name} the suffix"
        style.bounded_points(axis, np.flatnonzero(rows), chosen, "single_accuracy", index, label)
    style.zero_line(axis, 0.5)
    gated = " (gated: no sign)" if dataset.attrs["gated"] else ""
    axis.set_title(f"Single neurons, by effect on the logits{gated}")
    axis.legend(frameon=False, fontsize="small")
    style.whole_numbers(axis, "neuron")


def _draw_effects(axis: Axes, dataset: xr.Dataset) -> None:
    first = dataset.isel(neuron=slice(0, MOST_EFFECTS))
    for row in range(first.sizes["neuron"]):
        neuron = first.isel(neuron=row)
        # The histograms of neurons are stacked, the first on top, and scaled to a height of 0.9.
        bottom = MOST_EFFECTS - 1 - row
        for index, tokens in enumerate(dataset["tokens"].values):
            histogram = neuron["effect"].sel(tokens=tokens)
            label = str(tokens) if not row else None
            height = histogram / float(neuron["effect"].max()) * 0.9 + bottom
            colour = style.COLOURS[index]
            axis.step(histogram["bin"], height, where="mid", color=colour, label=label)
        place = f"{int(neuron['layer'])}.{int(neuron['index'])}"
        axis.text(float(dataset["bin"][0]), bottom + 0.55, place, fontsize="small")
    axis.set_yticks([])
    axis.set_title("What the first neurons do to logits")
    axis.set_xlabel("W_U · w_out")
    axis.set_ylabel("share of tokens, neuron by neuron")
    axis.legend(title=f"suffix -{dataset.attrs['suffix']}", frameon=False, fontsize="small")
    axis.grid(alpha=0.3)
