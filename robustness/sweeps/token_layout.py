"""Layout of the file of single tokens: its place, its columns, and its readouts in chunks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from robustness.files.metrics import Metric
from robustness.runs.batching import query_positions
from robustness.text.corpus import Corpus

COLUMNS = {
    "token_id": "token at the query position",
    "compared": "whether KL, agreement and entropy are of the query position (0 or 1)",
    "predicted": "whether loss and accuracy are of the query position (0 or 1)",
}
"""Long names of what every position has before anything is measured."""

COLUMN_BYTES = 4 + 1 + 1
"""Bytes of all columns of one position."""

Columns = Mapping[str, NDArray[Any]]
"""Values of the columns by name, (sequence, token)."""


def beside(path: Path) -> Path:
    """Return the path of the file of single tokens that belongs to a run's file."""
    return path.with_name(f"{path.stem}.tokens{path.suffix}")


def columns_of(corpus: Corpus) -> Columns:
    """Return the columns of all positions of a corpus."""
    every = slice(0, len(corpus.tokens))
    queries = query_positions(corpus, every, torch.from_numpy(corpus.tokens))
    columns: dict[str, NDArray[Any]] = {"token_id": corpus.tokens}
    for name, mask in (("compared", queries["compared"]), ("predicted", queries["predicted"])):
        columns[name] = np.zeros(corpus.tokens.shape, np.int8)
        columns[name][:, queries["first"] : queries["last"]] = mask.numpy()
    return columns


def frame(blank: xr.Dataset, dims: Sequence[str], columns: Columns) -> xr.Dataset:
    """Return the file of single tokens of a run without its readouts.

    Parameters
    ----------
    blank : Dataset
        Coordinates and attributes of the run.
    dims : sequence of str
        Dimensions that tell schedules apart.
    columns : mapping of str to array
        As from `columns_of`.
    """
    variables = {}
    for name, text in COLUMNS.items():
        values = columns[name].astype(np.int32 if name == "token_id" else np.int8)
        described = {"units": "1", "long_name": text}
        # Raw bytes of large token ids can look like an HDF5 link to another file, which a check
        # of untrusted files refuses; compressed ones do not.
        variables[name] = (("sequence", "token"), values, described, {"zlib": True})
    labels = [name for name in blank.coords if name in (*dims, "relative_depth", "schedule")]
    coords: dict[str, Any] = {name: blank[name] for name in (*labels, "sequence", "document")}
    positions = np.arange(columns["token_id"].shape[1])
    coords["token"] = ("token", positions, {"long_name": "query position"})
    attrs = {**blank.attrs, "conventions": "information in nats; KL(clean || intervened)"}
    return xr.Dataset(variables, coords=coords, attrs=attrs)


def create_readout(file: netCDF4.Dataset, metric: Metric, dims: Sequence[str], dtype: Any) -> None:
    """Add a readout to an open file, its last dimensions (sequence, token)."""
    sizes = [len(file.dimensions[dim]) for dim in dims]
    # Chunks of one sequence each: files are filled, merged and read a few sequences at a time, and
    # a chunk of several would be compressed again for each.
    variable = file.createVariable(
        metric.name,
        dtype,
        dims,
        zlib=True,
        fill_value=np.nan,
        chunksizes=(*sizes[:-2], 1, sizes[-1]),
    )
    variable.setncatts(metric.attrs)
