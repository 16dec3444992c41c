"""Views of sweeps over pairs of layers: readouts under interventions at two layers at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from recipes.views import readouts, style
from recipes.views.sections import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXTREMES = 10
"""Number of pairs with the lowest values, and with the highest, that a table shows."""

REPLACED_BY_LABEL = ("layer", "layer_to", "relative_depth", "schedule")
"""Coordinates of a pair that the label of its row replaces."""


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield readouts of the pairs with the smallest and largest changes, and of single layers."""
    for intervention in dataset["intervention"].values:
        yield from _sections_of(dataset.sel(intervention=intervention), str(intervention))


def _sections_of(chosen: xr.Dataset, intervention: str) -> Iterator[Section]:
    names = readouts.tabulated_names(chosen)
    sums: dict[str, xr.DataArray] = {}
    if intervention == "drop-pair" and "kl" in chosen and not readouts.is_difference(chosen):
        sums["kl beyond sum"] = _beyond_sum(chosen["kl"])
    flat = chosen.assign(sums).stack(pair=("layer", "layer_to"))
    order, alone = _order(flat, names[0])
    flat = _labelled(flat)
    schedule = ["schedule"] if "schedule" in flat else []
    several = "several layers" if intervention.endswith("-span") else "two layers"
    # The diagonal holds single layers, which have no sum to go beyond.
    groups = {
        several: (order[~alone], [names[0], *sums, *names[1:], *schedule]),
        "one layer alone": (order[alone], [*names, *schedule]),
    }
    for group, (rows, shown) in groups.items():
        for which, pairs in _ends_of_order(rows).items():
            columns = {name: flat[name].isel({"layer,to": pairs}) for name in shown}
            yield Section(f"{intervention}, {group}: {which} {names[0]}", "layer,to", columns)


def _order(flat: xr.Dataset, name: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the pairs that exist, sorted by a readout, and which of them are single layers."""
    mean = flat[name].mean("sequence", skipna=False)
    # A difference has no schedules; its readouts are NaN where an intervention does not fit.
    fits = flat["schedule"] != "" if "schedule" in flat.coords else mean.notnull()
    order = np.argsort(mean.values, kind="stable")
    order = order[fits.values[order]]
    return order, (flat["layer"].values == flat["layer_to"].values)[order]


def _labelled(flat: xr.Dataset) -> xr.Dataset:
    """Return pairs with labels such as 3,5, and their schedules as a variable."""
    labels = [f"{layer},{other}" for layer, other in flat["pair"].values]
    schedules = flat["schedule"].values if "schedule" in flat.coords else None
    flat = flat.reset_index("pair").drop_vars(REPLACED_BY_LABEL, errors="ignore")
    flat = flat.rename(pair="layer,to").assign_coords({"layer,to": labels})
    return flat if schedules is None else flat.assign(schedule=("layer,to", schedules))


def _ends_of_order(rows: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
    """Return the rows that are shown, by the words that introduce them in a title."""
    if len(rows) > 2 * EXTREMES:
        of = f"{EXTREMES} of {len(rows)}, with the"
        return {f"{of} lowest": rows[:EXTREMES], f"{of} highest": rows[: -EXTREMES - 1 : -1]}
    return {f"all {len(rows)} by": rows} if len(rows) else {}


def _beyond_sum(kl: xr.DataArray) -> xr.DataArray:
    """Return the KL of dropping two layers less the sum of those of dropping each alone."""
    # Dropping a layer and the same layer is dropping it alone: the diagonal.
    alone = xr.DataArray(
        np.diagonal(kl.transpose("sequence", "layer", "layer_to"), axis1=1, axis2=2),
        dims=("sequence", "layer"),
        coords={"layer": kl["layer"]},
    )
    return (kl - alone - alone.rename(layer="layer_to")).assign_attrs(kl.attrs)


def figure(dataset: xr.Dataset) -> Figure:
    """Draw two readouts over both layers, one row of heat maps for each intervention."""
    shown, names = readouts.drawn_names(dataset), dataset["intervention"].values
    figure, axes = style.panels(len(names), len(shown), (5.4, 4.4))
    means = dataset[shown].mean("sequence", skipna=False)
    for row, intervention in zip(axes, names, strict=True):
        for axis, name in zip(row, shown, strict=True):
            chosen = means[name].sel(intervention=intervention)
            image = style.heat_map(axis, chosen, "layer_to", "layer")
            # One scale for all interventions, so that colours can be compared.
            difference = readouts.is_difference(dataset)
            readouts.colour(image, means[name], name, difference=difference)
            label, title = readouts.label_and_title(dataset, name)
            axis.set_title(f"{intervention}: {title}", fontsize="medium")
            _name_axes(axis, str(intervention))
            readouts.name_layers(axis, dataset["layer"].values)
            figure.colorbar(image, ax=axis, label=label)
    return figure


def _name_axes(axis: Axes, intervention: str) -> None:
    if intervention.endswith("-span"):
        axis.set_xlabel("first layer of the span")
        axis.set_ylabel("last layer of the span")
        return
    alone = " (on the diagonal, it alone)" if intervention == "drop-pair" else ""
    axis.set_xlabel(f"one layer{alone}")
    axis.set_ylabel("the other layer")
