"""Views of neuron files: how MLP neurons write to the vocabulary, from weights alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import xarray as xr

from recipes.views import style
from recipes.views.sections import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield the share of neurons in every class, by layer."""
    if "share" in dataset:
        names = dataset["neuron_class"].values
        columns = {str(name): dataset["share"].sel(neuron_class=name) for name in names}
        yield Section("share of neurons", "layer", columns)


def figure(dataset: xr.Dataset) -> Figure:
    """Draw the shares of prediction and suppression neurons, and the moments of all neurons."""
    figure, axes = style.panels(1, 2, (5.5, 4.2))
    _draw_shares(axes[0, 0], dataset)
    _draw_moments(axes[0, 1], dataset)
    return figure


def _draw_shares(axis: Axes, dataset: xr.Dataset) -> None:
    for index, name in enumerate(("prediction", "suppression")):
        share = dataset["share"].sel(neuron_class=name)
        style.curve(axis, share["layer"], share, index, name)
    axis.set_ylabel("share of neurons")
    axis.set_ylim(0)
    style.whole_numbers(axis, "layer")
    axis.legend(frameon=False)
    axis.set_title(f"Kurtosis above {dataset.attrs['kurtosis_threshold']:g}")


def _draw_moments(axis: Axes, dataset: xr.Dataset) -> None:
    points = axis.scatter(
        dataset["cosine_skewness"],
        dataset["cosine_kurtosis"],
        c=dataset["layer"].broadcast_like(dataset["cosine_kurtosis"]),
        s=4,
        cmap="viridis",
        # As vectors, tens of thousands of points would make a file that no viewer opens quickly.
        rasterized=True,
    )
    axis.figure.colorbar(points, ax=axis, label="layer")
    style.zero_line(axis, dataset.attrs["kurtosis_threshold"])
    axis.set_yscale("log")
    axis.set_xlabel("skewness of the cosines")
    axis.set_ylabel("kurtosis")
    axis.set_title("Every neuron" + (" (gated: no sign)" if dataset.attrs["gated"] else ""))
    axis.grid(alpha=0.3)
