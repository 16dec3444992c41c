"""Figures of sweeps: changes when blocks are dropped, swapped and repeated."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.evidence.curves import FEWEST_LAYERS, interior, with_interior
from recipes.evidence.files import Files
from recipes.experiments.drop_and_swap import interior_agreement
from recipes.figures.panels import (
    PANEL,
    Models,
    curve,
    name_of,
    name_readout,
    with_layers,
    with_legend,
)
from recipes.recipe import REPEAT, SWEEP
from recipes.views import style
from robustness.statistics.uncertainty import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def interventions(models: Models) -> Figure:
    """Draw KL and agreement, one row each for swap and drop."""
    figure, axes = style.panels(2, 2, PANEL)
    for row, name in zip(axes, ("swap", "drop"), strict=True):
        for axis, metric in zip(row, ("kl", "agreement"), strict=True):
            for index, files in enumerate(models):
                values = files[SWEEP][metric].sel(intervention=name)
                curve(axis, values, index, name_of(files), log=metric == "kl")
            name_readout(axis, metric)
            axis.set_title(name)
    return with_legend(figure, models)


def agreement_by_layers(models: Models) -> Figure:
    """Draw the interior agreement of every model against its number of layers."""
    figure, axes = style.panels(1, 1, (6, 3.8))
    axis = axes[0, 0]
    able = with_interior(models)
    layers = [files.layers for files in able]
    for index, name in enumerate(("drop", "swap")):
        draws = [interior_agreement(name, files) for files in able]
        middle = np.array([float(each.isel(draw=0)) for each in draws])
        low, high = np.array([interval(each) for each in draws]).T
        bars = np.stack([middle - low, high - middle])
        axis.errorbar(layers, middle, bars, linestyle="", label=name, **style.line_style(index))
    for files in able:
        place = (files.layers, float(interior_agreement("swap", files).isel(draw=0)))
        options: dict[str, Any] = {"textcoords": "offset points", "fontsize": "small"}
        axis.annotate(name_of(files), place, (5, 5), **options)
    axis.margins(x=0.3)
    axis.set_xlabel("layers")
    axis.set_xticks(sorted(set(layers)))
    axis.set_ylabel("interior agreement with the clean model")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    return figure


def changes(models: Models) -> Figure:
    """Draw KL, agreement and change in entropy of swap and drop, and their KL on the interior."""
    figure, axes = style.panels(4, 2, (PANEL[0], 2.8))
    for column, name in enumerate(("swap", "drop")):
        _draw_changes(axes[:3, column], models, name)
    zoom, difference = axes[3]
    for index, files in enumerate(models):
        if files.layers >= FEWEST_LAYERS:
            _draw_interior(zoom, difference, files, index)
    zoom.set_ylabel("KL [nat]")
    zoom.set_title("interior layers: drop —, swap - -", fontsize="medium")
    style.zero_line(difference)
    difference.set_ylabel("KL, drop less swap [nat]")
    difference.set_title("above 0: swapping is milder", fontsize="medium")
    return with_legend(figure, models)


def _draw_changes(axes: Any, models: Models, name: str) -> None:
    """Draw KL, agreement and change in entropy of an intervention, one below the other."""
    kl, agreement, entropy = axes
    for index, files in enumerate(models):
        data, label = files[SWEEP].sel(intervention=name), name_of(files)
        curve(kl, data["kl"], index, label, log=True)
        curve(agreement, data["agreement"], index, label)
        curve(entropy, (data["entropy"] - data["clean_entropy"]) / log(2), index, label)
    name_readout(kl, "kl")
    name_readout(agreement, "agreement")
    kl.set_title(name)
    style.zero_line(entropy)
    entropy.set_ylabel("change in entropy [bit]")


def _draw_interior(zoom: Axes, difference: Axes, files: Files, index: int) -> None:
    """Draw KL of both interventions on interior layers, and one less the other."""
    kl = files[SWEEP]["kl"].isel(layer=interior(files))
    dropped, swapped = kl.sel(intervention="drop"), kl.sel(intervention="swap")
    curve(zoom, dropped, index, f"{name_of(files)}, drop", linestyle="-")
    curve(zoom, swapped, index, f"{name_of(files)}, swap", linestyle="--")
    curve(difference, dropped - swapped, index, name_of(files))


def repetition(models: Models, span: int) -> Figure:
    """Draw the entropy in bits when each block of a span is executed twice."""
    figure, axes = style.panels(1, 1, PANEL)
    axis = axes[0, 0]
    for index, files in enumerate(with_layers(models, span)):
        data = files[REPEAT]
        values = data["entropy"].sel(intervention=f"repeat-{span}") / log(2)
        curve(axis, values, index, name_of(files))
        clean = float(data["clean_entropy"].mean()) / log(2)
        colour = style.line_style(index)["color"]
        axis.axhline(clean, color=colour, linestyle=":", linewidth=1.2)
    axis.set_xlabel("relative depth where the span starts")
    axis.set_ylabel("entropy [bit]")
    return with_legend(figure, models)
