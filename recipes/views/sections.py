"""Sections of a file: labelled arrays that become the columns of one table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from recipes.views.tabular import Column, Table, Value
from robustness.files.sequences import COUNTED, mean_over_tokens
from robustness.statistics.bootstrap_intervals import bootstrap
from robustness.statistics.uncertainty import standard_error


@dataclass(frozen=True)
class Section:
    """Arrays over the same rows."""

    title: str
    rows: str
    """Dimension of the rows, whose labels are the first column."""
    columns: Mapping[str, xr.DataArray]
    """Arrays by the heading of their column, over the rows and perhaps over `sequence`."""

    def table(self, *, by_bootstrap: bool = False) -> Table:
        """Return means over sequences with standard errors, or with bootstrap intervals."""
        labels = next(iter(self.columns.values()))[self.rows].values
        columns = [Column(self.rows, _values(labels))]
        for name, values in self.columns.items():
            columns.append(_column(name, values, by_bootstrap=by_bootstrap))
            if values.dtype.kind == "f" and is_uneven(values):
                columns.append(_column(f"{name} by token", mean_over_tokens(values)))
        return Table(self.title, columns)


def bounded(name: str, dataset: xr.Dataset, variable: str) -> dict[str, xr.DataArray]:
    """Return the columns of a variable that has its interval beside it, `_low` and `_high`."""
    ends = {name: "", f"{name} from": "_low", f"{name} to": "_high"}
    return {heading: dataset[f"{variable}{end}"] for heading, end in ends.items()}


def named(dataset: xr.Dataset) -> Iterator[tuple[str, xr.DataArray]]:
    """Yield the variables of a dataset by their names, as text."""
    for name, values in dataset.data_vars.items():
        yield str(name), values


def is_uneven(values: xr.Dataset | xr.DataArray) -> bool:
    """Whether means of sequences are over more tokens of some than of others."""
    return COUNTED in values.coords and np.unique(values[COUNTED]).size > 1


def _column(name: str, values: xr.DataArray, *, by_bootstrap: bool = False) -> Column:
    unit = str(values.attrs.get("units", "1"))
    # Weights, neurons and boundaries have no sequences, and so no error by documents.
    if "sequence" not in values.dims:
        return Column(name, _values(values.values), unit)
    means = _values(values.mean("sequence", skipna=False).values)
    if not by_bootstrap:
        return Column(name, means, unit, errors=standard_error(values).values.tolist())
    ends = bootstrap(values).transpose(..., "end").values.tolist()
    return Column(name, means, unit, intervals=[(low, high) for low, high in ends])


def _values(values: np.ndarray) -> list[Value]:
    if values.dtype.kind in "OUS":
        return [str(value) for value in values]
    return list(values.tolist())
