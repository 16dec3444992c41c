"""Views of similarity files: cosines of sublayer outputs when adjacent blocks are swapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import xarray as xr

from recipes.views import style
from recipes.views.sections import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield cosines by layer, one table for each component and processing."""
    for processing in dataset["processing"].values:
        for component in dataset["component"].values:
            chosen = dataset["cosine"].sel(processing=processing, component=component)
            names = dataset["comparison"].values
            columns = {str(name): chosen.sel(comparison=name) for name in names}
            yield Section(f"{component}, {processing}", "layer", columns)


def figure(dataset: xr.Dataset) -> Figure:
    """Draw cosines over layers, one panel for attention and one for the MLP."""
    figure = style.new_figure(11, 4.4)
    axes = figure.subplots(1, 2, sharey=True)
    # The last is the centred stream, if the model has one, as in the paper.
    processing = dataset["processing"].values[-1]
    for axis, component in zip(axes, dataset["component"].values, strict=False):
        chosen = dataset["cosine"].sel(component=component, processing=processing)
        style.lines(axis, chosen, "comparison", "layer (the first of the two)")
        style.zero_line(axis)
        axis.set_title(f"{component} outputs, {processing}")
    axes[0].set_ylabel("cosine")
    axes[1].legend(frameon=False, fontsize="small")
    return figure
