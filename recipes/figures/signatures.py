"""Figure of the signatures of stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.evidence.files import Absent, Files
from recipes.experiments.hypothesis import bounds
from recipes.figures.panels import (
    PANEL,
    Models,
    curve,
    draw_classes,
    make_logarithmic,
    name_of,
)
from recipes.recipe import ATTENTION, SWEEP
from recipes.views import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = ("KL, block dropped [nat]", "attention to the previous 5", "share of neurons")


def signatures(models: Models) -> Figure:
    """Draw KL under drop, local attention and neurons, with the bounds of the four stages."""
    figure = style.new_figure(max(PANEL[0], 3.4 * len(models)), 7)
    axes = figure.subplots(3, len(models), sharex=True, squeeze=False)
    for (kl, local, neurons), files in zip(axes.T, models, strict=True):
        kl.set_title(name_of(files), fontsize="medium")
        dropped = files[SWEEP]["kl"].sel(intervention="drop")
        curve(kl, dropped, 0, "KL, block dropped", log=True)
        make_logarithmic(kl)
        previous = files[ATTENTION]["previous"].sel(window=5).mean("head")
        curve(local, previous, 3, "attention to the previous 5")
        local.set_ylim(0)
        draw_classes(neurons, files, "{}")
        neurons.legend(frameon=False, fontsize="small")
        neurons.set_xlabel("relative depth")
        for edge in _inner_bounds(files):
            for axis in (kl, local, neurons):
                place = (edge - 0.5) / max(1, files.layers - 1)
                axis.axvline(place, color="grey", linestyle="--", linewidth=1)
    for axis, label in zip(axes[:, 0], LABELS, strict=True):
        axis.set_ylabel(label)
    return figure


def _inner_bounds(files: Files) -> list[int]:
    """Return the first layers of all stages but the first; none if the stages are unknown."""
    try:
        return bounds(files)[1:-1]
    except Absent:
        return []
