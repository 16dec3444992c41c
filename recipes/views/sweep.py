"""Views of sweeps: readouts under interventions at every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import xarray as xr

from recipes.views import readouts, style
from recipes.views.sections import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIRST_LAYER = "layer (the first that is changed)"
"""Label of the horizontal axis if an intervention changes several layers."""

SINGLE = {"drop", "attention-drop", "mlp-drop"}
"""Names of the interventions that change one layer."""


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield readouts by layer, one table for each intervention."""
    names = readouts.tabulated_names(dataset)
    for intervention in dataset["intervention"].values:
        chosen = dataset.sel(intervention=intervention)
        yield Section(str(intervention), "layer", {name: chosen[name] for name in names})


def figure(dataset: xr.Dataset) -> Figure:
    """Draw two readouts over layers, one line for each intervention, with 95 % bands."""
    shown = readouts.drawn_names(dataset)
    figure = style.new_figure(max(7.5, 5 * len(shown)), 4.2)
    where = "layer" if SINGLE.issuperset(dataset["intervention"].values) else FIRST_LAYER
    difference = readouts.is_difference(dataset)
    for axis, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        label, title = readouts.label_and_title(dataset, name)
        log = name == "kl" and not difference
        style.lines(axis, dataset[name], "intervention", where, log=log)
        axis.set_ylabel(label)
        axis.set_title(title)
        if name == "kl":
            readouts.mark_floor(axis, dataset)
        if difference:
            style.zero_line(axis)
        elif name in readouts.SHARES:
            axis.set_ylim(0, 1)
        if f"clean_{name}" in dataset:
            clean = float(dataset[f"clean_{name}"].mean())
            axis.axhline(clean, color="black", linewidth=1, label="clean")
    style.legend_of_first(figure)
    return figure
