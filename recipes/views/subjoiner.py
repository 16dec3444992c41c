"""Views of subjoiner files: each head's attention to the earlier pieces of a word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recipes.views import style
from recipes.views.sections import Section, bounded
from robustness.statistics.uncertainty import band_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEST_HEADS = 10
"""Maximum number of heads in the table."""


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield the heads with the highest scores on the words that select heads."""
    flat = dataset.stack(place=("layer", "head"))
    order = np.argsort(-flat["finding_score"].values, kind="stable")
    best = flat.isel(place=order[:BEST_HEADS])
    names = [f"{layer}.{head}" for layer, head in best["place"].values]
    best = best.reset_index("place").drop_vars(("layer", "head", "relative_depth"))
    best = best.rename(place="layer.head")
    best = best.assign_coords({"layer.head": names})
    columns = {
        "found": best["found"],
        "found by": best["finding_score"],
        **bounded("held out", best, "score"),
        "monotone": best["monotone"],
    }
    yield Section("the best heads", "layer.head", columns)


def attention_curve(head: xr.Dataset, input_class: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Return a head's attention by token before the last, with the ends of its 95 % band."""
    chosen = head.sel(input_class=input_class)
    count_name = "words_in_pieces" if input_class == "pieces" else "whole_words"
    # Heads are selected on one half of the words, and measured on the other.
    words = int(head.attrs[count_name]) // 2
    error = chosen["attention_standard_error"]
    return chosen["attention"], band_of(chosen["attention"], error, words)


def figure(dataset: xr.Dataset) -> Figure:
    """Draw the score of every head, and the attention of the best heads from a word's end."""
    figure = style.new_figure(13, 4.4)
    grid, *panels = figure.subplots(1, 4, width_ratios=(1.4, 1, 1, 1))
    image = style.heat_map(grid, dataset["score"], "layer", "head")
    figure.colorbar(image, ax=grid, label="weight, pieces less whole words")
    grid.set_title("Held-out words")
    order = np.argsort(-dataset["finding_score"].values, axis=None, kind="stable")
    for axis, place in zip(panels, order, strict=False):
        layer, head = divmod(int(place), dataset.sizes["head"])
        chosen = dataset.isel(layer=layer, head=head)
        _draw_head(axis, chosen)
        low, high = float(chosen["score_low"]), float(chosen["score_high"])
        axis.set_title(f"head {layer}.{head}: {float(chosen['score']):.2f} [{low:.2f}, {high:.2f}]")
    panels[0].set_ylabel("attention from the last token")
    panels[0].legend(frameon=False, fontsize="small")
    return figure


def _draw_head(axis: Axes, head: xr.Dataset) -> None:
    for index, kind in enumerate(map(str, head["input_class"].values)):
        line, around = attention_curve(head, kind)
        style.band_line(axis, line["key"], line, around, index, label=kind)
    style.whole_numbers(axis, "token before the last")
