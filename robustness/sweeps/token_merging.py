"""Joins the files of single tokens that belong to the shards of a sweep."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from robustness.errors import Refusal, reading
from robustness.files import netcdf
from robustness.files.atomic import remove_leftovers, write_whole
from robustness.files.metrics import Metric, metric_of
from robustness.sweeps import token_layout
from robustness.sweeps.token_layout import beside

SEQUENCES_COPIED = 64
"""Number of sequences that are copied at once."""


def check_token_files(shards: Sequence[Path]) -> None:
    """Refuse shards whose files of single tokens are missing."""
    for shard in shards:
        if not beside(shard).exists():
            raise Refusal(
                f"{beside(shard)} is not there: run the command of {shard} again with `fresh`"
            )


def merge_token_files(shards: Sequence[Path], path: Path, blank: xr.Dataset) -> None:
    """Join the files of single tokens of shards, a few sequences at a time.

    Parameters
    ----------
    shards : sequence of path
        Files of the shards, in order.
    path : path
        File of the whole run.
    blank : Dataset
        Coordinates and attributes of the whole run.
    """
    files = [beside(shard) for shard in shards]
    remove_leftovers(beside(path))

    def join(temporary: Path) -> None:
        with ExitStack() as stack:
            datasets = [stack.enter_context(netcdf.opened(file, whole=False)) for file in files]
            _check_of_one_run(files, datasets, blank)
            for dataset in datasets:
                # Masked arrays would take NaN, the fill value, for missing data.
                dataset.set_auto_mask(False)
            metrics = _metrics(datasets[0])
            readouts = {name: datasets[0][name] for name in metrics}
            _frame(datasets, readouts, blank).to_netcdf(temporary, engine="netcdf4")
            whole = stack.enter_context(netCDF4.Dataset(temporary, "a"))
            for name, variable in readouts.items():
                token_layout.create_readout(
                    whole, metrics[name], variable.dimensions, variable.dtype
                )
            begin = 0
            for dataset in datasets:
                begin = _copy(dataset, whole, list(readouts), begin)

    write_whole(beside(path), join)


def _metrics(dataset: netCDF4.Dataset) -> dict[str, Metric]:
    """Return the metrics that a file holds, by name."""
    metrics = {}
    for name, variable in dataset.variables.items():
        metric = metric_of(name, {key: variable.getncattr(key) for key in variable.ncattrs()})
        if metric is not None:
            metrics[name] = metric
    return metrics


def _frame(
    datasets: Sequence[netCDF4.Dataset], readouts: Mapping[str, Any], blank: xr.Dataset
) -> xr.Dataset:
    """Return the file of the whole run without its readouts."""
    # Readouts of the clean run have the dimensions (sequence, token) alone.
    dims = next(each.dimensions for each in readouts.values() if len(each.dimensions) > 2)
    columns = {}
    for name in token_layout.COLUMNS:
        columns[name] = np.concatenate([dataset[name][:] for dataset in datasets])
    return token_layout.frame(blank, dims[:-2], columns)


def _copy(
    shard: netCDF4.Dataset, whole: netCDF4.Dataset, readouts: Sequence[str], begin: int
) -> int:
    """Copy the readouts of a shard to its place in the whole, and return where the next begins."""
    count = len(shard.dimensions["sequence"])
    for first in range(0, count, SEQUENCES_COPIED):
        last = min(first + SEQUENCES_COPIED, count)
        for name in readouts:
            whole[name][..., begin + first : begin + last, :] = shard[name][..., first:last, :]
    return begin + count


def _check_of_one_run(
    files: Sequence[Path], datasets: Sequence[netCDF4.Dataset], blank: xr.Dataset
) -> None:
    """Refuse files of single tokens that do not belong to the shards beside them, in order."""
    begin = 0
    for index, (file, dataset) in enumerate(zip(files, datasets, strict=True), 1):
        with reading(str(file), f"run the command of shard {index} again with `fresh`"):
            end = begin + len(dataset.dimensions["sequence"])
            run = (f"{index}/{len(files)}", blank.attrs["corpus_sha256"], blank.attrs["model"])
            shard = tuple(dataset.getncattr(name) for name in ("shard", "corpus_sha256", "model"))
            fits = (
                shard == run
                and np.array_equal(dataset["sequence"][:], blank["sequence"].values[begin:end])
                and np.array_equal(dataset["document"][:], blank["document"].values[begin:end])
                and len(dataset.dimensions["token"]) == len(datasets[0].dimensions["token"])
                and _structure(dataset, datasets[0]) == _structure(datasets[0], datasets[0])
            )
            if not fits:
                raise ValueError(f"it is not of shard {index} of the run")
            begin = end


def _structure(dataset: netCDF4.Dataset, first: netCDF4.Dataset) -> dict[str, Any]:
    """Return type and dimensions of the readouts that the first shard has."""
    return {name: (dataset[name].dtype, dataset[name].dimensions) for name in _metrics(first)}
