"""Views of stages: the signatures of a model's layers, and the boundaries between segments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from recipes.views import style
from recipes.views.sections import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {"chosen": ("black", "-", 2.2), "four": (style.COLOURS[2], "--", 1.8)}
"""Line colour, style and width of the boundaries of each partition."""


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield segments with their first layers and mean signatures, one table for each partition."""
    for name in dataset["partition"].values:
        partition = dataset.sel(partition=name)
        # The dimension is as long as the partition with the most segments.
        segments = partition["segment"].values[: _count(partition)]
        stages = np.sort(partition["stage"].values)
        first_layers = np.searchsorted(stages, np.arange(len(segments)))
        columns = {
            "first layer": xr.DataArray(first_layers, {"segment": segments}, "segment"),
            "low": _by_segment(partition["boundary_low"], segments),
            "high": _by_segment(partition["boundary_high"], segments),
        }
        means = partition["mean"].isel(segment=slice(0, len(segments)))
        for signature in dataset["signature_name"].values:
            columns[str(signature)] = means.sel(signature_name=signature)
        yield Section(_title(dataset, str(name), len(segments)), "segment", columns)


def _by_segment(boundaries: xr.DataArray, segments: object) -> xr.DataArray:
    """Return boundaries by the segment that begins there; the first segment has none."""
    return boundaries.rename(edge="segment").reindex(segment=segments)


def _count(partition: xr.Dataset) -> int:
    """Return the number of segments of a partition."""
    return int(partition["stage"].max()) + 1


def _title(dataset: xr.Dataset, partition: str, count: int) -> str:
    if partition != "chosen":
        return f"{partition}: {count} segments"
    title = f"chosen by the criterion: {count} segment{'s' if count > 1 else ''}"
    alone = int(dataset.attrs["criterion_segments"]) == 1
    return f"{title}, that is no boundary" if alone else title


def figure(dataset: xr.Dataset) -> Figure:
    """Draw a heat map of standardised signatures over layers, with both partitions' boundaries."""
    names = dataset["signature_long_name"].values
    figure = style.new_figure(10, 1.6 + 0.34 * len(names))
    axis = figure.subplots()
    image = axis.imshow(
        dataset["signature"].values,
        aspect="auto",
        cmap="RdBu_r",
        vmin=-2.5,
        vmax=2.5,
        interpolation="nearest",
    )
    axis.set_yticks(range(len(names)), [style.plain(str(name)) for name in names])
    for partition in dataset["partition"].values:
        _draw_boundaries(axis, dataset.sel(partition=partition), str(partition))
    if axis.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    else:
        axis.set_title("no boundaries: the signatures are better described without any")
    style.whole_numbers(axis, "layer")
    axis.grid(False)
    figure.colorbar(image, ax=axis, label="standard deviations over layers")
    return figure


def _draw_boundaries(axis: Axes, partition: xr.Dataset, name: str) -> None:
    colour, dashes, width = LOOKS[name]
    count = _count(partition)
    for edge in range(count - 1):
        boundary = partition.isel(edge=edge)
        at = float(boundary["boundary"])
        low, high = float(boundary["boundary_low"]), float(boundary["boundary_high"])
        label = f"{name} ({count} segments)" if not edge else None
        # A boundary is between a layer and the one before it.
        axis.axvline(at - 0.5, color=colour, linestyle=dashes, linewidth=width, label=label)
        axis.axvspan(low - 0.5, high - 0.5, color=colour, alpha=0.12, linewidth=0)
