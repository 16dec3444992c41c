"""Views of files of free schedules: the readouts of each schedule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recipes.views import readouts, style
from recipes.views.sections import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield readouts by schedule."""
    names = readouts.tabulated_names(dataset)
    yield Section("", "schedule", {name: dataset[name] for name in names})


def figure(dataset: xr.Dataset) -> Figure:
    """Draw two readouts of free schedules, one row for each schedule, with 95 % bars."""
    schedules = dataset["schedule"].values
    longest = min(style.LONGEST_TEXT, max(map(len, schedules)))
    shown = readouts.drawn_names(dataset)
    figure = style.new_figure(8 + 0.08 * longest, 1.8 + 0.35 * len(schedules))
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, name, colour in zip(axes, shown, style.COLOURS, strict=False):
        mean, around = dataset[name].mean("sequence", skipna=False), style.ends(dataset[name])
        # A bootstrap interval need not hold the mean, and matplotlib takes no negative lengths.
        bars = np.stack([mean - around.sel(end="low"), around.sel(end="high") - mean]).clip(min=0)
        rows = np.arange(len(schedules))
        axis.errorbar(mean, rows, xerr=bars, fmt="o", capsize=3, color=colour)
        axis.set_yticks(rows, [style.plain(str(name)) for name in schedules])
        label, title = readouts.label_and_title(dataset, name)
        axis.set_xlabel(label)
        axis.set_title(title)
        axis.grid(axis="x", alpha=0.3)
        if readouts.is_difference(dataset):
            axis.axvline(0, color="grey", linewidth=0.8)
        elif name in readouts.SHARES:
            axis.set_xlim(0, 1)
        elif name == "kl" and bool((mean > 0).all()):
            _make_logarithmic(axis)
    axes[0].invert_yaxis()
    axes[0].set_ylabel("schedule")
    return figure


def _make_logarithmic(axis: Axes) -> None:
    """Make the horizontal axis logarithmic, with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter

    # matplotlib's own labels, powers of ten, are too few where KL spans less than two decades.
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
