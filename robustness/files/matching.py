"""Checks that a file is the beginning of a run: its settings, variables and labels are equal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import OtherSettings
from robustness.files import changes, netcdf
from robustness.files.metrics import METRICS
from robustness.files.precision_floor import FLOOR_ATTRIBUTES
from robustness.statistics import stopping

REPLACED = "choose another `out`, or `fresh` to replace it"
"""Remedy where the file of another run is in the place of the output."""

FREE_ATTRIBUTES = (
    "created",
    "command",
    "sequences_done",
    "requests_done",
    *changes.ADJUSTABLE,
    *changes.NOTES,
    *FLOOR_ATTRIBUTES,
    "shards_created",
    "shards_command",
)
"""Names of attributes in which two calls of the same run may differ."""

VERSIONS = ("versions", "server_versions")
"""Names of attributes in which a finished file may differ; one run must not mix versions."""

CODE = {"metrics_sha256": "metrics", "measurement_sha256": "measurement"}
"""What functions of a user's own are of, by the attribute that holds a hash of their source."""


def check_beginning(
    file: Path, earlier: xr.Dataset, wanted: xr.Dataset, *, finished: bool, further: bool
) -> None:
    """Refuse the file of another run.

    Parameters
    ----------
    file : path
        Path of the file.
    earlier : Dataset
        Dataset in the file.
    wanted : Dataset
        Dataset of the run, in which nothing is measured yet.
    finished : bool
        Whether the file is taken as the finished output.
    further : bool
        Whether a run that stopped continues to a smaller standard error.

    Raises
    ------
    OtherSettings
        If settings differ, or variables are missing.
    """
    # The source of the tokens does not matter: corpus_sha256 says whether they are the same.
    ignored = {*FREE_ATTRIBUTES, "source_sha256"}
    if finished:
        ignored |= {*VERSIONS}
    if further:
        ignored |= {"until_se"}
    difference = _difference(
        stopping.settings_before_stopping(earlier.attrs), wanted.attrs, ignored
    )
    if difference:
        raise OtherSettings(f"{file} was made {difference}; {REPLACED}")
    _check_variables(file, earlier, wanted, finished=finished)
    _check_labels(file, earlier, wanted, finished=finished)


def _check_variables(
    file: Path, earlier: xr.Dataset, wanted: xr.Dataset, *, finished: bool
) -> None:
    """Refuse a file that lacks a variable of the run, or has it over other dimensions."""
    for name, variable in wanted.data_vars.items():
        # A finished output may lack variables that are made when a run is completed. Metrics are
        # not among them: an earlier version may have measured fewer.
        if finished and name not in earlier and name not in METRICS:
            continue
        if name not in earlier or set(earlier[name].dims) != set(variable.dims):
            raise OtherSettings(f"{file} holds no {name} {variable.dims}, as is wanted; {REPLACED}")


def _check_labels(file: Path, earlier: xr.Dataset, wanted: xr.Dataset, *, finished: bool) -> None:
    """Refuse a file with other labels than those of the run, of layers or schedules for instance.

    Sequences are told by the corpus's hash, and a run that stopped has fewer of them.
    """
    for name, labels in wanted.coords.items():
        if name not in earlier.coords or "sequence" in labels.dims:
            continue
        recorded = earlier[name]
        if finished and name in labels.dims:
            # A run may be measured in one order, and sorted when it is completed.
            recorded, labels = recorded.sortby(name), labels.sortby(name)
        # Schedules differ where an intervention of one's own is another function than before.
        if not _same_labels(recorded, labels):
            raise OtherSettings(f"{file} has another {name} than its settings say; {REPLACED}")


def _difference(earlier: Mapping[str, Any], wanted: Mapping[str, Any], ignored: set[str]) -> str:
    """Return in words the setting in which two runs differ; empty where they are equal."""
    names = []
    for name in (earlier.keys() | wanted.keys()) - ignored:
        if str(earlier.get(name)) != str(wanted.get(name)):
            names.append(name)
    if not names:
        return ""
    # A hash tells a reader less than any setting, so it is named only where nothing else differs.
    name = min(names, key=lambda name: (name.endswith("_sha256"), name))
    have, want = earlier.get(name), wanted.get(name)
    if name in CODE and have is not None and want is not None:
        return f"with another function or record of its {CODE[name]} ({name})"
    if have is None:
        return f"without {name} {want}"
    if want is None:
        return f"with {name} {have}, which is not asked for now"
    return f"with {name} {have}, not {want}"


def in_layout(file: Path, earlier: xr.Dataset, wanted: xr.Dataset, *, shorter: bool) -> xr.Dataset:
    """Return the dataset in a file with its dimensions in the order that a run has.

    Parameters
    ----------
    file, earlier, wanted
        As for `check_beginning`.
    shorter : bool
        Whether the file may hold fewer sequences than the run.

    Raises
    ------
    OtherSettings
        If labels or types differ.
    """
    for name, labels in wanted.coords.items():
        recorded = earlier.get(name)
        # Coordinates that no dimension is named after were not recorded by early versions.
        if recorded is None and name not in labels.dims:
            continue
        if recorded is not None and shorter and "sequence" in labels.dims:
            labels = labels[: recorded.size]
        if recorded is None or not _same_labels(recorded, labels):
            raise OtherSettings(f"{file} has another {name} than its settings say; {REPLACED}")
    transposed = {}
    for name, variable in wanted.data_vars.items():
        values = earlier[name]
        if values.dtype != variable.dtype:
            raise OtherSettings(
                f"{file} holds {name} as {values.dtype}, not {variable.dtype}; {REPLACED}"
            )
        transposed[name] = values.transpose(*variable.dims)
    return earlier.assign(transposed)


def _same_labels(one: xr.DataArray, other: xr.DataArray) -> bool:
    """Whether labels are equal; texts may be of either of numpy's types."""
    if {*one.dims} != {*other.dims}:
        return False
    left, right = one.transpose(*other.dims).values, other.values
    return left.shape == right.shape and bool((left == right).all())


def kept_counts(file: Path, tally: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the counts that a run continues from, given those of a new run.

    Raises
    ------
    OtherSettings
        If the run has counts, and the file has none or others.
    """
    if not tally.size:
        return tally
    kept = netcdf.load_tally(file)
    if kept is None or kept.shape != tally.shape:
        raise OtherSettings(f"{file} holds no counts to go on from; {REPLACED}")
    return kept
