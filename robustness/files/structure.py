"""Checks of an opened NetCDF file before it is read: its groups, types, encodings and sizes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from robustness.errors import Refusal
from robustness.files.damage import REMEDY, damaged, shown_value
from robustness.files.schema import SCHEMA, is_whole
from robustness.files.tally import TALLY_GROUP

LARGEST_COMPRESSION = 1100
"""Largest ratio of the size of numbers to that of a file that holds them; zlib reaches 1032."""

TEXT_BYTES = 100
"""Minimum number of bytes that a text takes in memory."""

DECODING_ATTRIBUTES = frozenset(
    "scale_factor add_offset missing_value _Unsigned valid_min valid_max valid_range".split()
)
"""Attributes of variables by which readers of NetCDF change numbers; stages writes none."""


def check_file(path: Path, file: Any, *, whole: bool = True) -> None:
    """Refuse an opened NetCDF file that is not of stages, or not safe to read.

    Parameters
    ----------
    path : path
        Path of the file.
    file : netCDF4.Dataset
        The file; only its metadata is read here.
    whole : bool
        Whether all of it will be read at once and must fit in memory.

    Raises
    ------
    Refusal
        If stages did not write the file, or a later version did; if it has types that stages never
        writes, or attributes that change numbers; or if it claims more than its size or the memory
        can hold.
    """
    if "stages_schema" not in file.ncattrs():
        raise Refusal(f"{path} is a NetCDF file, but not one that stages wrote")
    schema = file.getncattr("stages_schema")
    if not is_whole(schema) or schema < 1:
        raise damaged(path, f"its schema is {shown_value(schema)}, which is no number from 1")
    if schema > SCHEMA:
        raise Refusal(
            f"{path} has schema {schema}, newer than {SCHEMA}: update stages-of-inference to read "
            "it"
        )
    for name in set(file.groups) - {TALLY_GROUP}:
        raise damaged(path, f"it has a group {shown_value(name)}")
    for group in file.groups.values():
        for name in group.groups:
            raise damaged(path, f"it has a group {shown_value(name)}")
        check_group(path, group, whole=whole)


def check_group(path: Path, group: Any, *, whole: bool = True) -> None:
    """Refuse a file, or a group of one, by its types, encodings and sizes alone.

    Parameters
    ----------
    path, whole
        As for `check_file`.
    group : netCDF4.Dataset or netCDF4.Group
        The file or the group.
    """
    if group.cmptypes or group.vltypes or group.enumtypes:
        raise damaged(path, "it has types of its own")
    size = path.stat().st_size
    least_size = 0
    for name, variable in group.variables.items():
        _check_encoding(path, name, variable)
        in_memory, in_file = _sizes(variable)
        if whole and in_memory > psutil.virtual_memory().available // 2:
            raise Refusal(
                f"{path} says that its {name} takes {in_memory / 1e9:.3g} GB, more than half of "
                "the memory that is free: read a part of it with xarray.open_dataset, or, if it is "
                f"damaged, {REMEDY}"
            )
        least_size += in_file
    if least_size > size:
        raise damaged(path, f"it says that it holds more than its {size} bytes can")


def _check_encoding(path: Path, name: str, variable: Any) -> None:
    """Refuse a variable whose numbers would be changed in reading."""
    if not name.isprintable():
        raise damaged(path, f"it has a variable {shown_value(name)}")
    if variable.dtype is not str and variable.dtype.kind not in "fiu":
        raise damaged(path, f"its {name} is of type {variable.dtype}")
    decoding = sorted(DECODING_ATTRIBUTES & set(variable.ncattrs()))
    if decoding:
        raise damaged(path, f"its {name} has {decoding[0]}, which would change its numbers")
    # xarray writes NaN as the fill value of floats, and would replace any other by NaN in reading.
    if "_FillValue" in variable.ncattrs():
        fill = variable.getncattr("_FillValue")
        if not isinstance(fill, (float, np.floating)) or not math.isnan(fill):
            raise damaged(path, f"its {name} has _FillValue {shown_value(fill)}")


def _sizes(variable: Any) -> tuple[int, int]:
    """Return the bytes that a variable takes in memory, and the fewest that it takes in a file."""
    is_text = variable.dtype is str
    width = TEXT_BYTES if is_text else variable.dtype.itemsize
    in_memory = math.prod(variable.shape) * width
    chunks = variable.chunking()
    if chunks is None or chunks == "contiguous":
        # A text is at least 8 bytes in a file: the reference to where it stands in a heap.
        return in_memory, in_memory // (TEXT_BYTES // 8 if is_text else 1)
    # HDF5 unpacks whole chunks, however little of one the variable fills.
    in_memory = max(in_memory, math.prod(chunks) * width)
    return in_memory, in_memory // LARGEST_COMPRESSION
