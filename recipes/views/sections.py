"""Sections of a view: labelled arrays that become the columns of one table."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from recipes.views.tabular import Column, Table, Value
from robustness.files.sequences import COUNTED, mean_over_tokens
from robustness.statistics.bootstrap_intervals import bootstrap
from robustness.statistics.uncertainty import band, standard_error

Ends = Callable[[xr.DataArray], xr.DataArray]
"""Function from values (…, sequence) to the ends (…, end) of the interval around their mean."""


@dataclass(frozen=True)
class Section:
    """Arrays over the same rows, under a title."""

    title: str
    """Title of the table; empty if the file has a single table."""
    rows: str
    """Name of the dimension of rows; its labels are the first column."""
    columns: Mapping[str, xr.DataArray]
    """Arrays by the heading of their column, over the rows and perhaps over `sequence`."""
    by_interval: bool = False
    """Whether means over sequences have 95 % intervals by Student's t, not standard errors."""

    def table(self, *, by_bootstrap: bool = False) -> Table:
        """Return means over sequences with standard errors, or with bootstrap intervals."""
        labels = next(iter(self.columns.values()))[self.rows].values
        for name, values in self.columns.items():
            if {*values.dims} - {"sequence"} != {self.rows}:
                raise ValueError(f"column {name} is over {values.dims}, not over {self.rows}")
            if not np.array_equal(values[self.rows].values, labels):
                raise ValueError(f"column {name} has other labels of {self.rows} than the first")
        columns = [Column(self.rows, _values(labels))]
        for name, values in self.columns.items():
            ends = bootstrap if by_bootstrap else band if self.by_interval else None
            columns.append(_column(name, values, ends))
            if values.dtype.kind == "f" and is_uneven(values):
                columns.append(_column(f"{name} by token", mean_over_tokens(values)))
        return Table(self.title, columns)


def bounded(name: str, dataset: xr.Dataset, variable: str) -> dict[str, xr.DataArray]:
    """Return a variable and the ends of its interval, `_low` and `_high`, as three columns."""
    return {
        name: dataset[variable],
        f"{name} from": dataset[f"{variable}_low"],
        f"{name} to": dataset[f"{variable}_high"],
    }


def named(dataset: xr.Dataset) -> Iterator[tuple[str, xr.DataArray]]:
    """Yield the names and values of a dataset's variables; xarray's names need not be text."""
    for name, values in dataset.data_vars.items():
        yield str(name), values


def is_uneven(values: xr.Dataset | xr.DataArray) -> bool:
    """Whether some sequences have more counted tokens than others, so that two means differ."""
    return COUNTED in values.coords and np.unique(values[COUNTED]).size > 1


def _column(name: str, values: xr.DataArray, ends: Ends | None = None) -> Column:
    unit = str(values.attrs.get("units", "1"))
    # Weights, neurons and boundaries have no sequences, and so no error by documents.
    if "sequence" not in values.dims:
        return Column(name, _values(values.values), unit)
    means = _values(values.mean("sequence", skipna=False).values)
    if ends is None:
        return Column(name, means, unit, errors=standard_error(values).values.tolist())
    around = ends(values).transpose(..., "end").values.tolist()
    return Column(name, means, unit, intervals=list(map(tuple, around)))


def _values(values: np.ndarray) -> list[Value]:
    # Texts of a netCDF file are read as objects.
    if values.dtype.kind in "OUS":
        return list(map(str, values))
    return list(values.tolist())
