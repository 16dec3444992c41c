"""Outputs of long runs: a file, and beside it one with the numbers of a run that is unfinished."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Unwritable
from robustness.files import netcdf, ownership
from robustness.files.atomic import remove_leftovers, temporary_file
from robustness.files.lock import Lock

SAVING_SHARE = 0.05
"""Largest share of a run's time that saving takes."""

PROGRESS = ("sequences_done", "requests_done")
"""Attributes that say how far an unfinished run is, of which its file has one."""


class Output:
    """The file of a run, locked until `release`, and the one that keeps unfinished numbers.

    Parameters
    ----------
    path : path, optional
        Path of the file; without one, nothing is kept.
    kind : str
        Kind of the file, as from `ownership.kind_of`.

    Attributes
    ----------
    partial : path or None
        Path of the file that keeps the numbers of an unfinished run.

    Raises
    ------
    Refusal
        If the path holds anything but a file of this kind, or another process writes it.
    """

    def __init__(self, path: Path | None, kind: str) -> None:
        self.path, self.kind = path, kind
        if path is not None:
            ownership.check(path, kind)
        self.partial = path and partial_path(path)
        self._saved_at, self._saving_time = 0.0, 0.0
        # Before anything is read or removed, which another run might be writing.
        self._lock = None if path is None else Lock(path)
        try:
            self._remove_leftovers()
            if self.partial is not None:
                ownership.check(self.partial, kind)
        except BaseException:
            self.release()
            raise

    def earlier(self) -> Path | None:
        """Return the file to continue from: that of a run that has begun, or the output."""
        if self.partial is None or self.path is None:
            return None
        if self.partial.exists() and _has_begun(netcdf.load(self.partial).attrs):
            return self.partial
        return self.path if self.path.exists() else None

    def try_out(self, dataset: xr.Dataset, tally: NDArray[np.int32] | None = None) -> None:
        """Refuse an unwritable path before anything is measured, by writing a file as large."""
        if self.path is not None:
            with temporary_file(self.path) as temporary:
                netcdf.write_netcdf(dataset, tally, temporary)

    @property
    def is_due(self) -> bool:
        """Whether numbers may be saved without taking more than `SAVING_SHARE` of the time."""
        return monotonic() - self._saved_at >= self._saving_time / SAVING_SHARE

    def keep(self, dataset: xr.Dataset, tally: NDArray[np.int32] | None = None) -> None:
        """Save the numbers of an unfinished run."""
        if self.partial is None:
            return
        begun = monotonic()
        netcdf.save(dataset, self.partial, tally)
        self._saved_at = monotonic()
        self._saving_time = self._saved_at - begun

    def complete(self, dataset: xr.Dataset, tally: NDArray[np.int32] | None = None) -> None:
        """Save the finished dataset."""
        if self.path is not None:
            netcdf.save(dataset, self.path, tally)

    def forget(self) -> None:
        """Remove the file of unfinished numbers."""
        if self.partial is not None:
            ownership.remove(self.partial, self.kind)

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of a run that was killed while it wrote."""
        if self._lock is None or not self._lock.held:
            return
        for file in filter(None, (self.path, self.partial)):
            remove_leftovers(file)


def partial_path(path: Path) -> Path:
    """Return the path of the file that keeps the numbers of an unfinished run."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def resumed_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of the file that a run would continue from, if there is one."""
    for file in (partial_path(path), path):
        attrs = netcdf.load(file).attrs if file.is_file() else {}
        if attrs and (file == path or _has_begun(attrs)):
            return dict(attrs)
    return {}


def last_words(kind: type[BaseException]) -> suppress:
    """Return what keeps a failing save from hiding the error that ended a run, also of saving.

    A write that has just failed fails again, and its first reason must be the one raised.
    """
    return suppress(*((Unwritable,) if issubclass(kind, Unwritable) else ()))


def _has_begun(attrs: Mapping[str, Any]) -> bool:
    """Whether anything is measured in an unfinished run, given the attributes of its file."""
    return any(attrs.get(name) for name in PROGRESS)
