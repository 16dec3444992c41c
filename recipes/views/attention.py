"""Views of attention files: the weight on the previous tokens and on the first token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import xarray as xr

from recipes.views import style
from recipes.views.sections import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield attention weights by distance, the weight on the first token, and entropy, by layer."""
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
    """Draw the weight on the five previous tokens, by head and over layers, and the entropy."""
    figure, axes = style.panels(1, 3, (13 / 3, 4.2))
    by_head, over_layers, entropy = axes[0]
    previous = dataset["profile"].sel(offset=slice(1, 5)).sum("offset", skipna=False)
    image = style.heat_map(by_head, previous.mean("sequence"), "layer", "head", (0, None))
    figure.colorbar(image, ax=by_head, label="weight")
    by_head.set_title("On the previous 5 tokens, each head")
    targets = {"previous 5 tokens": previous, "first token": dataset["first_token"]}
    weights = xr.concat(list(targets.values()), "on").assign_coords(on=list(targets))
    # Heads are averaged first: the band is of sequences, and heads are no sample.
    style.lines(over_layers, weights.mean("head"), "on", "layer")
    over_layers.set_ylim(0)
    over_layers.set_ylabel("attention weight, mean over heads")
    over_layers.legend(frameon=False)
    over_layers.set_title("Over layers")
    heads = dataset["entropy"].mean("head").expand_dims(of=["heads"])
    style.lines(entropy, heads, "of", "layer")
    entropy.set_ylabel("entropy of the weights [nat]")
    entropy.set_title("How spread out it is")
    return figure
