"""Views of norm files: the outputs of attention and MLP, and the turning of the residual stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import xarray as xr

from recipes.views import style
from recipes.views.sections import Section, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPANS = (1, 2, 4)
"""Numbers of blocks over which the table shows the angle between stream before and after."""


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield norms by layer for each processing and statistic, and the turning of the stream."""
    for processing in dataset["processing"].values:
        chosen = dataset.sel(processing=processing)
        for statistic in dataset["statistic"].values:
            title = f"{processing}, {statistic} token"
            yield Section(title, "layer", _norms(chosen, str(statistic)))
    turns = dataset["angular_distance"]
    columns = {"block_influence": dataset["block_influence"]}
    for span in SPANS:
        if span in turns["span"]:
            columns[f"angle over {span}"] = turns.sel(span=span)
    yield Section("turning of the residual stream", "layer", columns)


def _norms(dataset: xr.Dataset, statistic: str) -> dict[str, xr.DataArray]:
    columns = {}
    for name, values in named(dataset):
        if "statistic" in values.dims and "layer" in values.dims:
            columns[name] = values.sel(statistic=statistic)
    # Depth l is the stream that enters block l; the last depth enters no block.
    residual = dataset["residual_norm"].sel(statistic=statistic)
    entering = residual.isel(depth=slice(0, -1)).rename(depth="layer")
    columns["residual_norm"] = entering.assign_coords(layer=dataset["layer"])
    return columns


def figure(dataset: xr.Dataset) -> Figure:
    """Draw the norms of sublayer outputs, their ratio, and the influence of blocks."""
    figure, axes = style.panels(1, 3, (13 / 3, 4.2))
    norm, ratio, turn = axes[0]
    chosen = dataset.sel(statistic="mean")
    sublayers = {"attention": chosen["attention_norm"], "MLP": chosen["mlp_norm"]}
    norms = xr.concat(list(sublayers.values()), "of").assign_coords(of=list(sublayers))
    style.lines(norm, norms.sel(processing="raw"), "of", "layer")
    norm.set_ylabel("norm of the output, mean over tokens")
    norm.set_title("What sublayers write")
    norm.set_ylim(0)
    norm.legend(frameon=False)
    style.lines(ratio, chosen["attention_mlp_ratio"], "processing", "layer")
    style.zero_line(ratio, 1)
    ratio.set_ylabel("attention over MLP, mean over tokens")
    ratio.set_title("Which of them writes more")
    ratio.legend(frameon=False)
    style.lines(turn, dataset["block_influence"].expand_dims(of=["blocks"]), "of", "layer")
    turn.set_ylabel("1 - cosine of input and output")
    turn.set_title("Block influence")
    turn.set_ylim(0)
    return figure
