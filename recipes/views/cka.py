"""Views of CKA files: the similarity of residual streams at all pairs of depths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recipes.views import style
from recipes.views.sections import Section
from robustness.errors import Refusal

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield the CKA of each depth with three others, one table for each processing."""
    # CKA is a ratio of sums over all batches: an unfinished run has none.
    if "cka" not in dataset:
        return
    depths = dataset.sizes["depth"]
    others = {
        "with next": np.minimum(np.arange(depths) + 1, depths - 1),
        "with first": np.zeros(depths, int),
        "with last": np.full(depths, depths - 1),
    }
    for processing in dataset["processing"].values:
        chosen = dataset.sel(processing=processing)
        columns = {}
        for name, other in others.items():
            # An index array along `depth` takes one value per depth, not a block of the matrix.
            other_depth = {"depth_to": xr.DataArray(other, dims="depth")}
            columns[name] = chosen["cka"].isel(other_depth)
            columns[f"{name} se"] = chosen["cka_standard_error"].isel(other_depth)
        yield Section(f"{processing} residual streams", "depth", columns)


def figure(dataset: xr.Dataset) -> Figure:
    """Draw the CKA of every pair of depths, one heat map for each processing."""
    if "cka" not in dataset:
        raise Refusal("the run is not finished: CKA is computed after its last batch")
    processings = dataset["processing"].values
    figure = style.new_figure(5.2 * len(processings) + 0.8, 4.8)
    axes = np.atleast_1d(figure.subplots(1, len(processings)))
    # One scale for both, so that colours can be compared.
    low = float(dataset["cka"].min())
    for axis, processing in zip(axes, processings, strict=True):
        chosen = dataset["cka"].sel(processing=processing)
        image = style.heat_map(axis, chosen, "depth", "depth_to", (low, 1))
        axis.set_xlabel("depth")
        axis.set_title(f"{processing} residual streams")
        figure.colorbar(image, ax=axis, label="CKA")
    error = float(dataset["cka_standard_error"].median())
    batches, size = dataset.sizes["batch"], dataset.attrs["batch_sequences"]
    spread = "too few for an error" if np.isnan(error) else f"median standard error {error:.3f}"
    figure.supxlabel(f"{batches} batches of {size} sequences, {spread}", fontsize="small")
    return figure
