"""Attention: how much of it goes to the tokens just before, and to the first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import xarray as xr

from recipes.views import style
from recipes.views.sections import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield weights by distance, on the first token, and their entropy, by layer."""
    heads = dataset.mean("head", skipna=False, keep_attrs=True)
    profile = heads["profile"]
    columns = {
        "own token": profile.sel(offset=0),
        "previous": profile.sel(offset=1),
        "previous 5": profile.sel(offset=slice(1, 5)).sum("offset", skipna=False),
        "first token": heads["first_token"],
        "entropy": heads["entropy"],
    }
    yield Section("mean over heads", "layer", columns)


def figure(dataset: xr.Dataset) -> Figure:
    """Draw attention to the five previous tokens, for each head and over layers, and its spread."""
    figure, axes = style.panels(1, 3, (13 / 3, 4.2))
    grid, local, spread = axes[0]
    previous = dataset["profile"].sel(offset=slice(1, 5)).sum("offset", skipna=False)
    image = style.heat_map(grid, previous.mean("sequence"), "layer", "head", (0, None))
    figure.colorbar(image, ax=grid, label="weight")
    grid.set_title("On the previous 5 tokens, each head")
    kinds = {"previous 5 tokens": previous, "first token": dataset["first_token"]}
    both = xr.concat(list(kinds.values()), "on").assign_coords(on=list(kinds)).mean("head")
    style.lines(local, both, "on", "layer")
    local.set_ylim(0)
    local.set_ylabel("attention weight, mean over heads")
    local.legend(frameon=False)
    local.set_title("Over layers")
    heads = dataset["entropy"].mean("head").expand_dims(of=["heads"])
    style.lines(spread, heads, "of", "layer")
    spread.set_ylabel("entropy of the weights [nat]")
    spread.set_title("How spread out it is")
    return figure
