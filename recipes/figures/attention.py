"""Figures of attention to the previous tokens, and of the best subjoiner head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.evidence.files import best_head
from recipes.figures.panels import Models, curve, name_of, one_line_each, panel_each
from recipes.recipe import ATTENTION, SUBJOINER
from recipes.views import style
from recipes.views.subjoiner import attention_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOWS = (1, 2, 4, 8, 16)
"""Numbers of previous tokens whose summed attention is drawn."""


def windows(models: Models) -> Figure:
    """Draw attention to the previous tokens by their number, one panel for each model."""
    figure, axes = panel_each(models)
    for axis, files in zip(axes, models, strict=True):
        previous = files[ATTENTION]["previous"].mean("head")
        chosen = [window for window in WINDOWS if window in previous["window"]]
        for index, window in enumerate(chosen):
            curve(axis, previous.sel(window=window), index, str(window))
        axis.set_ylim(0)
        axis.set_ylabel("attention weight")
    axes[0].legend(title="tokens before", frameon=False, fontsize="small")
    return figure


def local_attention(models: Models) -> Figure:
    """Draw the mean attention weight on one of the five previous tokens."""
    return one_line_each(
        models,
        lambda files: files[ATTENTION]["previous"].sel(window=5).mean("head") / 5,
        "attention to one of the previous 5",
        low=0,
    )


def subjoiner(models: Models) -> Figure:
    """Draw the best head's attention from the end of a word, one panel for each model."""
    figure, axes = panel_each(models)
    for axis, files in zip(axes, models, strict=True):
        data = files[SUBJOINER]
        layer, head = best_head(data)
        best = data.isel(layer=layer, head=head)
        names = {"pieces": f"a word in {data.attrs['pieces']} pieces", "whole": "a whole word"}
        for index, kind in enumerate(map(str, best["input_class"].values)):
            line, around = attention_curve(best, kind)
            label, x = names[kind], line["key"]
            style.band_line(axis, x, line, around, index, label=label, markersize=3)
        axis.set_title(f"{name_of(files)}, head {layer}.{head}", fontsize="medium")
        axis.set_xlabel("token before the last")
        axis.set_ylabel("attention from the last token")
    axes[0].legend(frameon=False, fontsize="small")
    return figure
