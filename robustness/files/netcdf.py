"""NetCDF files: written whole, and read after checks of their bytes, structure and content."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal, reading
from robustness.files import contract, hdf5_bytes, structure
from robustness.files.atomic import write_whole, write_with_lock
from robustness.files.damage import REMEDY
from robustness.files.tally import TALLY_GROUP, dense_counts, sparse_counts


def save(dataset: xr.Dataset, path: Path, tally: NDArray[np.int32] | None = None) -> None:
    """Write a dataset as NetCDF, with counts, of which most are 0, in a group of the file.

    The caller holds the lock of the output; without one, see `save_with_lock`.
    """
    write_whole(path, partial(write_netcdf, dataset, tally))


def save_with_lock(dataset: xr.Dataset, path: Path) -> None:
    """Write a dataset as NetCDF, under a lock of its own if the caller has none."""
    write_with_lock(path, partial(write_netcdf, dataset, None))


def write_netcdf(dataset: xr.Dataset, tally: NDArray[np.int32] | None, file: Path) -> None:
    """Write a dataset and counts to a file; see `save`."""
    dataset.to_netcdf(file, engine="netcdf4")
    if tally is not None and tally.size:
        sparse_counts(tally).to_netcdf(file, engine="netcdf4", group=TALLY_GROUP, mode="a")


@contextmanager
def opened(path: Path, *, whole: bool = True) -> Iterator[Any]:
    """Open a file that stages wrote as a netCDF4.Dataset, and read only its metadata.

    Parameters
    ----------
    path : path
        Path of the file.
    whole : bool
        Whether all of it will be read at once and must fit in memory.

    Raises
    ------
    Refusal
        If the file does not exist, is not NetCDF, was not written by stages, has a newer schema,
        or would make the library read other files or more than memory holds.
    """
    with opened_part(path, whole=whole) as file:
        with reading(str(path), REMEDY):
            structure.check_file(path, file, whole=whole)
        yield file


def load(path: Path) -> xr.Dataset:
    """Read a dataset that stages wrote.

    Raises
    ------
    Refusal
        As from `opened`, or if the content is not that of the file's kind.
    """
    with opened(path), reading(str(path), REMEDY):
        try:
            dataset = _read(path)
        except MemoryError as error:
            raise Refusal(
                f"{path} takes more memory than there is: read a part of it with "
                "xarray.open_dataset"
            ) from error
    with reading(str(path), REMEDY):
        contract.check_dataset(path, dataset)
    return dataset


def _read(path: Path, **options: Any) -> xr.Dataset:
    """Read a file or a group of it, and decode no variables as times."""
    return xr.load_dataset(
        place(path), engine="netcdf4", decode_times=False, decode_timedelta=False, **options
    )


def place(path: Path) -> str:
    """Return the absolute path, which the NetCDF library cannot take for a network address."""
    return os.path.abspath(path)


@contextmanager
def opened_part(path: Path, *, whole: bool = True) -> Iterator[Any]:
    """Open a part of a file of tokens, which has no provenance, as a netCDF4.Dataset."""
    # Before netCDF4 opens the file, whose library may already be led astray by that.
    hdf5_bytes.check_bytes(path)
    with reading(str(path), REMEDY):
        file = netCDF4.Dataset(place(path))
    with file:
        with reading(str(path), REMEDY):
            structure.check_group(path, file, whole=whole)
        yield file


def load_part(path: Path) -> xr.Dataset:
    """Read a part of a file."""
    with opened_part(path), reading(str(path), REMEDY):
        return _read(path)


def load_tally(path: Path) -> NDArray[np.int32] | None:
    """Read the counts that were saved with a dataset, if there are any."""
    with opened(path) as file:
        if TALLY_GROUP not in file.groups:
            return None
        with reading(str(path), REMEDY):
            return dense_counts(path, _read(path, group=TALLY_GROUP))
