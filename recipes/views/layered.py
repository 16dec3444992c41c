"""Views of any other file: all of its variables over layers or depths, and perhaps sequences."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import TYPE_CHECKING

import xarray as xr

from recipes.views import readouts, style
from recipes.views.sections import Section, named
from robustness.errors import Refusal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABREAST = 3
"""Maximum number of panels side by side."""


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield one table of the variables by layer, and one of the variables by depth."""
    for dim in ("layer", "depth"):
        columns = {}
        for name, values in named(dataset):
            if {*values.dims} - {"sequence"} == {dim}:
                columns[name] = values
        if columns:
            yield Section("", dim, columns)


def figure(dataset: xr.Dataset) -> Figure:
    """Draw every variable over layers or depths, with at most one dimension besides sequences.

    Raises
    ------
    Refusal
        If there is no such variable.
    """
    shown = list(_drawable(dataset))
    if not shown:
        raise Refusal(unfit("drawn", dataset))
    rows, columns = ceil(len(shown) / ABREAST), min(len(shown), ABREAST)
    figure = style.new_figure(max(7.5, 4.6 * columns), 4.2 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat[len(shown) :]:
        axis.set_axis_off()
    difference = readouts.is_difference(dataset)
    for axis, (name, values) in zip(grid.flat, shown, strict=False):
        _draw(axis, name, values, difference=difference)
    return figure


def unfit(what: str, dataset: xr.Dataset) -> str:
    """Return the reason why no variable of a file can be tabulated or drawn."""
    held = ", ".join(f"{name} {values.dims}" for name, values in named(dataset))
    return (
        f"nothing in the file can be {what}; it holds: {held or 'no variables'}. Without a view of "
        "its own, a file needs a variable over layer or depth, alone or with sequence"
    )


def _drawable(dataset: xr.Dataset) -> Iterator[tuple[str, xr.DataArray]]:
    for name, values in named(dataset):
        # Over both of them there is no single axis to draw along.
        one_axis = ("layer" in values.dims) != ("depth" in values.dims)
        numbers = values.dtype.kind in "fiu"
        if one_axis and numbers and len({*values.dims} - {"sequence"}) <= 2:
            yield name, values


def _draw(axis: Axes, name: str, values: xr.DataArray, *, difference: bool) -> None:
    along = "depth" if "depth" in values.dims else "layer"
    others = set(values.dims) - {along, "sequence"}
    if others:
        style.lines(axis, values, str(others.pop()), along)
        axis.legend(frameon=False, fontsize="small")
    else:
        style.lines(axis, values.expand_dims(of=[name]), "of", along)
    label, unit = f"Δ {name}" if difference else name, values.attrs.get("units", "1")
    axis.set_ylabel(label if unit == "1" else f"{label} [{unit}]")
    axis.set_title(name if difference else values.attrs.get("long_name", name), wrap=True)
    if difference:
        style.zero_line(axis)
