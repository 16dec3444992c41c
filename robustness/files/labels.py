"""Dimensions and coordinates of a dataset: layers, and the schedules that a run executes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import DTypeLike, NDArray

from robustness.files.metrics import Metric
from robustness.schedules import Schedule, to_text
from robustness.schedules.interventions import Place


@dataclass(frozen=True)
class Labels:
    """Layout of schedules in a dataset.

    Attributes
    ----------
    dims : tuple of str
        Dimensions that tell schedules apart.
    coords : dict
        Coordinates along these dimensions.
    places : tuple
        Indices of every schedule along `dims`.
    """

    dims: tuple[str, ...]
    coords: dict[str, Any]
    places: tuple[tuple[int, ...], ...]

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Lay out values (schedule, …) as (*dims, …), NaN (or 0) where there is no schedule."""
        sizes = [len(self.coords[dim]) for dim in self.dims]
        shape = (*sizes, *values.shape[1:])
        missing = np.nan if np.issubdtype(values.dtype, np.floating) else 0
        spread = np.full(shape, missing, values.dtype)
        for place, value in zip(self.places, values, strict=True):
            spread[place] = value
        return spread


def sweep_labels(
    schedules: Mapping[Place, Schedule],
    layers: int,
    chosen: Sequence[int] | None = None,
) -> Labels:
    """Lay out the schedules of a sweep as (intervention, layer), over all layers or some.

    Schedules of interventions on two layers are laid out as (intervention, layer, layer_to).
    """
    names: list[str] = []
    for name, *_ in schedules:
        if name not in names:
            names.append(name)
    swept = range(layers) if chosen is None else sorted(set(chosen))
    dims = ("intervention", "layer", "layer_to")[: len(next(iter(schedules)))]
    # Objects, since numpy cuts texts of its own type to one fixed length.
    texts = np.full((len(names), *[len(swept)] * len(dims[1:])), "", dtype=object)
    places = []
    for (name, *at), schedule in schedules.items():
        place = (names.index(name), *map(swept.index, at))
        texts[place] = to_text(schedule)
        places.append(place)
    coords = {"intervention": names, **layer_coords(layers, swept), "schedule": (dims, texts)}
    if "layer_to" in dims:
        coords["layer_to"] = coords["layer"]
    return Labels(dims, coords, tuple(places))


def layer_coords(layers: int, chosen: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the coordinates of layers: their index, and their depth between first and last."""
    described = {"units": "1", "long_name": "layer over the last layer"}
    index = np.array(range(layers) if chosen is None else chosen)
    # A model of one layer has its only layer at depth 0.
    depth = index / max(1, layers - 1)
    return {"layer": index, "relative_depth": ("layer", depth, described)}


def schedule_labels(schedules: Sequence[Schedule]) -> Labels:
    """Lay out free schedules as (schedule,)."""
    texts = [to_text(schedule) for schedule in schedules]
    places = tuple((index,) for index in range(len(texts)))
    return Labels(("schedule",), {"schedule": texts}, places)


def blank_dataset(
    variables: Mapping[str, tuple[Metric, tuple[str, ...]]],
    coords: Mapping[str, Any],
    attrs: Mapping[str, Any],
    dtype: DTypeLike = np.float32,
) -> xr.Dataset:
    """Return a dataset before any measurement: NaN, or 0 in variables of whole numbers.

    Parameters
    ----------
    variables : mapping of str to tuple
        Metric and dimensions of every variable.
    coords : mapping
        Coordinates, at least one along each dimension.
    attrs : mapping
        Settings and provenance, as from `file_attributes`.
    dtype : dtype
        Type of the variables that are no counts.
    """
    empty = xr.Dataset(coords=dict(coords), attrs=dict(attrs))
    for name, (metric, dims) in variables.items():
        shape = tuple(empty.sizes[dim] for dim in dims)
        values = np.zeros(shape, np.int32) if metric.count else np.full(shape, np.nan, dtype)
        empty[name] = (dims, values, metric.attrs)
    return empty
