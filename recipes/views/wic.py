"""Views of word-in-context probes: their accuracy at every depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import xarray as xr

from recipes.views import style
from recipes.views.sections import Section, bounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield the accuracy of every probe, by depth."""
    columns: dict[str, xr.DataArray] = {}
    for probe in dataset["probe"].values:
        columns |= bounded(str(probe), dataset.sel(probe=probe), "accuracy")
    yield Section("accuracy on test, with 95 % intervals", "depth", columns)


def figure(dataset: xr.Dataset) -> Figure:
    """Draw accuracy over depth with 95 % bands, one line for each probe, and chance."""
    figure = style.new_figure(7, 4.4)
    axis = figure.subplots()
    for index, probe in enumerate(dataset["probe"].values):
        chosen = dataset.sel(probe=probe)
        style.bounded_line(axis, chosen["depth"], chosen, "accuracy", index, str(probe))
    style.zero_line(axis, 0.5)
    axis.set_ylabel("share of test pairs told right")
    axis.set_title("Does the word mean the same in both sentences?")
    axis.legend(frameon=False, fontsize="small")
    style.whole_numbers(axis, "depth (blocks that have run)")
    return figure
