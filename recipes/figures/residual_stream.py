"""Figures of the residual stream: CKA, norms, similarity under swap, and the logit lens."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING

from recipes.figures.panels import (
    Models,
    curve,
    draw_classes,
    name_of,
    one_line_each,
    panel_each,
)
from recipes.recipe import CKA, LENS, NEURONS, NORMS, SIMILARITY
from recipes.views import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPARISONS = {"index_early": 2, "index_late": 1, "adjacent": 3, "self_first": 0, "self_second": 5}
"""Index of the colour of every comparison of two blocks, as in the paper."""


def alignment(models: Models) -> Figure:
    """Draw the CKA of all pairs of depths, one heat map for each model."""
    figure, axes = panel_each(models, (4.4, 3.8))
    for axis, files in zip(axes, models, strict=True):
        values = files[CKA]["cka"].isel(processing=0)
        image = style.heat_map(axis, values, "depth", "depth_to", (0, 1))
        axis.set_xlabel("depth")
        axis.set_aspect("equal")
        figure.colorbar(image, ax=axis, label="CKA")
    return figure


def norm_ratio(models: Models) -> Figure:
    """Draw the ratio of the norms of attention and MLP outputs."""
    figure = one_line_each(
        models,
        lambda files: (
            files[NORMS]["attention_mlp_ratio"].isel(processing=-1).sel(statistic="median")
        ),
        "attention over MLP, median over tokens",
        low=0,
    )
    style.zero_line(figure.axes[0], 1)
    return figure


def mlp_norm(models: Models) -> Figure:
    """Draw the mean norm of MLP outputs."""
    return one_line_each(
        models,
        lambda files: files[NORMS]["mlp_norm"].isel(processing=-1).sel(statistic="mean"),
        "norm of MLP output, mean over tokens",
        low=0,
    )


def similarity(models: Models) -> Figure:
    """Draw cosines of sublayer outputs under swap, one row for each model."""
    figure, axes = style.panels(len(models), 2, (5.4, 3.6))
    for row, files in zip(axes, models, strict=True):
        data = files[SIMILARITY]["cosine"].isel(processing=-1)
        for axis, component in zip(row, ("attention", "mlp"), strict=True):
            for name, colour in COMPARISONS.items():
                values = data.sel(component=component, comparison=name)
                curve(axis, values, colour, name.replace("_", ", "))
            style.zero_line(axis)
            label = "MLP" if component == "mlp" else component
            axis.set_title(f"{name_of(files)}, {label}", fontsize="medium")
            axis.set_ylabel("cosine")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


def lens_entropy(models: Models) -> Figure:
    """Draw the entropy of both lenses in bits."""
    figure, axes = style.panels(1, 1, (6.2, 4.2))
    axis = axes[0, 0]
    for index, files in enumerate(models):
        for lens, dashes in (("recomputed", "-"), ("frozen", "--")):
            values = files[LENS]["entropy"].sel(lens=lens) / log(2)
            label = f"{name_of(files)}, {lens}" if len(models) > 1 else lens
            curve(axis, values, index, label, linestyle=dashes)
    axis.set_ylabel("entropy of the lens [bit]")
    axis.set_ylim(0)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def lens_and_neurons(models: Models) -> Figure:
    """Draw the lens's KL and the shares of neurons, one panel for each model."""
    figure, axes = panel_each(models, (5.2, 3.6))
    for axis, files in zip(axes, models, strict=True):
        curve(axis, files[LENS]["kl"].sel(lens="recomputed"), 0, "KL of the lens")
        axis.set_ylabel("KL(final ‖ lens) [nat]")
        axis.set_ylim(0)
        other = axis.twinx()
        draw_classes(other, files, "{} neurons")
        gated = files[NEURONS].attrs["gated"]
        other.set_ylabel("share of neurons" + (" (gated)" if gated else ""))
        if axis is axes[0]:
            handles = [*axis.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
            axis.legend(handles=handles, frameon=False, fontsize="small")
    return figure
