"""Sweeps over pairs of layers: readouts when interventions are made at every two of them."""

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
"""Number of pairs that a table shows at either end of their order."""

LABELS = ("layer", "layer_to", "relative_depth", "schedule")
"""Coordinates of a pair that the label of its row replaces."""


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield readouts of the pairs that change least and most, and of single layers."""
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
    several = "several layers" if intervention.endswith("-span") else "two layers"
    for what, rows in ((several, order[~alone]), ("one layer alone", order[alone])):
        shown = names if what == "one layer alone" else [names[0], *sums, *names[1:]]
        if "schedule" in flat:
            shown = [*shown, "schedule"]
        for which, pairs in _ends_of_order(rows).items():
            columns = {name: flat[name].isel({"layer,to": pairs}) for name in shown}
            yield Section(f"{intervention}, {what}: {which} {names[0]}", "layer,to", columns)


def _order(flat: xr.Dataset, name: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the pairs that fit into the model by a readout, and which are of a single layer."""
    mean = flat[name].mean("sequence", skipna=False)
    # Without schedules, as in a difference, what does not fit is NaN.
    fits = flat["schedule"] != "" if "schedule" in flat.coords else mean.notnull()
    order = np.argsort(mean.values, kind="stable")
    order = order[fits.values[order]]
    return order, (flat["layer"].values == flat["layer_to"].values)[order]


def _labelled(flat: xr.Dataset) -> xr.Dataset:
    """Return pairs with one label each, as in 3,5, and their schedules as a variable."""
    labels = [f"{i},{j}" for i, j in zip(flat["layer"].values, flat["layer_to"].values)]
    schedules = flat["schedule"].values if "schedule" in flat.coords else None
    flat = flat.reset_index("pair").drop_vars(LABELS, errors="ignore")
    flat = flat.rename(pair="layer,to").assign_coords({"layer,to": labels})
    return flat if schedules is None else flat.assign(schedule=("layer,to", schedules))


def _ends_of_order(rows: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
    """Return the rows that are shown, by what is said of them: all, or those at either end."""
    if len(rows) > 2 * EXTREMES:
        of = f"{EXTREMES} of {len(rows)}, with the"
        return {f"{of} lowest": rows[:EXTREMES], f"{of} highest": rows[: -EXTREMES - 1 : -1]}
    return {f"all {len(rows)} by": rows} if len(rows) else {}


def _beyond_sum(kl: xr.DataArray) -> xr.DataArray:
    """Return by how much dropping two layers changes more than dropping each, (…, layer_to)."""
    alone = xr.DataArray(
        np.diagonal(kl.transpose("sequence", "layer", "layer_to"), axis1=1, axis2=2),
        dims=("sequence", "layer"),
        coords={"layer": kl["layer"]},
    )
    return (kl - alone - alone.rename(layer="layer_to")).assign_attrs(kl.attrs)


def figure(dataset: xr.Dataset) -> Figure:
    """Draw two readouts over both layers, a row of heat maps an intervention."""
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
