"""Runs that continue from the file that an earlier call with equal settings left.

An unfinished run keeps its numbers in a file beside its output.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Unwritable, reading
from robustness.files import changes, netcdf, ownership
from robustness.files.atomic import remove_leftovers, temporary_file
from robustness.files.lock import Lock
from robustness.files.matching import REPLACED, check_beginning, in_layout, kept_counts
from robustness.statistics import stopping

SAVING_SHARE = 0.05
"""Largest share of a run's time that saving takes."""

TALLIED = ("until_se", "shard")
"""Attributes of runs whose counts are needed when they are finished, to continue or to merge."""

Complete = Callable[[xr.Dataset, NDArray[np.int32]], xr.Dataset]


class Run:
    """A run over sequences, batch by batch: the numbers so far, in memory and on disk.

    With a path, a run continues from what an earlier call with equal settings left there. As a
    context manager, it saves its numbers when an exception ends it.

    Parameters
    ----------
    dataset : Dataset
        Dataset to fill, as from `blank_dataset`; its attributes are settings and provenance.
    tally : int array of shape (run, token), optional
        Counts, mostly 0, that are saved with the dataset until the run is finished.
    path : path, optional
        Path of the output.
    fresh : bool
        Whether to replace what an earlier call left.
    complete : callable, optional
        Function of the dataset and the tally that adds derived variables when all is measured.

    Attributes
    ----------
    done : int
        Number of sequences that are measured.
    partial : path or None
        Path of the file that keeps the numbers of an unfinished run.

    Raises
    ------
    Refusal
        If the file of a run with other settings exists, another process is writing the output, or
        it cannot be written.
    """

    def __init__(
        self,
        dataset: xr.Dataset,
        tally: NDArray[np.int32] | None = None,
        *,
        path: Path | None = None,
        fresh: bool = False,
        complete: Complete = lambda dataset, _: dataset,
    ) -> None:
        self.dataset = dataset
        self.tally = np.zeros(0, np.int32) if tally is None else tally
        self.path = path
        self.kind = ownership.kind_of(dataset.attrs)
        if path is not None:
            ownership.check(path, self.kind)
        self.partial = path and partial_path(path)
        self.done = 0
        self._complete = complete
        self._finished = False
        self._saved_at, self._saving_time = 0.0, 0.0
        # Before anything is read or removed, which another run might be writing.
        self._lock = None if path is None else Lock(path)
        try:
            self._remove_leftovers()
            if self.partial is not None:
                ownership.check(self.partial, self.kind)
            earlier = None if fresh or path is None else self._earlier()
            if earlier is not None:
                with reading(str(earlier), REPLACED):
                    self._resume(earlier)
            elif path is not None:
                self._try_out(path)
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # Without a finished sequence, what an earlier call has saved is worth more.
            if kind is None or self._finished or not self.done:
                return
            # A write that has just failed fails again, and its first reason must be the one raised.
            with suppress(*((Unwritable,) if issubclass(kind, Unwritable) else ())):
                self._save_progress()
        finally:
            self._release()

    def add(
        self,
        rows: slice,
        values: Mapping[str, NDArray[Any]],
        place: slice | None = None,
        counts: NDArray[np.int32] | None = None,
    ) -> None:
        """Add the numbers of a batch of sequences, and save all numbers so far.

        Saving is postponed while it would take more than `SAVING_SHARE` of the time.

        Parameters
        ----------
        rows : slice
            Indices of the sequences; all earlier sequences are done.
        values : mapping of str to array
            Values of every variable at these sequences, its last dimension.
        place : slice, optional
            Indices along the last dimension, where it is not that of sequences.
        counts : int array, optional
            Counts to add to the tally.
        """
        for name, value in values.items():
            self.dataset[name].values[..., place or rows] = value
        if counts is not None:
            counts = self.tally + counts
        # In one statement, so that an interruption leaves both as before or both new.
        self.done, self.tally = rows.stop, self.tally if counts is None else counts
        if monotonic() - self._saved_at >= self._saving_time / SAVING_SHARE:
            self._save_progress()

    def lost(self, sequence: int, text: str, lacking: str = "memory") -> None:
        """Record how much is run at once from a sequence on, since memory or time was lacking."""
        name = changes.LACKING[lacking]
        self.dataset.attrs |= changes.noted(self.dataset.attrs, name, sequence, text)

    @property
    def finished(self) -> bool:
        """Whether the output is complete."""
        return self._finished

    def measured(self) -> xr.Dataset:
        """Return the sequences that are done, without copying them."""
        return self.dataset.isel(sequence=slice(0, self.done))

    def finish(self, **stopped: Any) -> xr.Dataset:
        """Complete the dataset of a run that is done, save it to its path, and return it.

        Parameters
        ----------
        **stopped
            Attributes to add where the run ends before all sequences are measured.
        """
        if not self._finished:
            dataset = self.measured().assign_attrs(stopped) if stopped else self.dataset
            completed = self._complete(dataset, self.tally)
            if self.path is not None:
                tallied = any(name in completed.attrs for name in TALLIED)
                netcdf.save(completed, self.path, self.tally if tallied else None)
            # Only after saving: an interruption before must leave a run that can continue.
            self.dataset, self._finished = completed, True
        if self.partial is not None:
            ownership.remove(self.partial, self.kind)
        return self.dataset

    def _try_out(self, path: Path) -> None:
        """Refuse an unwritable path before anything is measured, by writing a file as large."""
        with temporary_file(path) as temporary:
            netcdf.write_netcdf(self.dataset, self.tally, temporary)

    def _save_progress(self) -> None:
        if self.partial is None:
            return
        begun = monotonic()
        dataset = self.dataset.assign_attrs(sequences_done=self.done)
        netcdf.save(dataset, self.partial, self.tally)
        self._saved_at = monotonic()
        self._saving_time = self._saved_at - begun

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of a run that was killed while it wrote."""
        if self._lock is None or not self._lock.held:
            return
        for file in filter(None, (self.path, self.partial)):
            remove_leftovers(file)

    def _earlier(self) -> Path | None:
        """Return the file to continue from, in which at least one sequence is done."""
        if self.partial is None or self.path is None:
            return None
        if self.partial.exists() and netcdf.load(self.partial).attrs.get("sequences_done"):
            return self.partial
        return self.path if self.path.exists() else None

    def _resume(self, file: Path) -> None:
        """Take over the numbers of a file, after a check that it is of this run."""
        earlier = netcdf.load(file)
        attrs = stopping.settings_before_stopping(earlier.attrs)
        # A run that stopped at one standard error continues if a smaller one is asked for.
        further = stopping.goes_further(attrs, self.dataset.attrs)
        finished = file == self.path and not further
        check_beginning(file, earlier, self.dataset, finished=finished, further=further)
        done = int(earlier.attrs.pop("sequences_done", earlier.attrs["sequences"]))
        if not finished:
            earlier = in_layout(file, earlier, self.dataset, shorter=further)
            self.tally = kept_counts(file, self.tally)
        carried = changes.carried(attrs, self.dataset.attrs, done)
        if further:
            for name, variable in self.dataset.data_vars.items():
                variable.values[..., :done] = earlier[name].values[..., :done]
        else:
            self.dataset = earlier
        if not finished:
            self.dataset.attrs |= carried
        self.done, self._finished = done, finished


def partial_path(path: Path) -> Path:
    """Return the path of the file that keeps the numbers of an unfinished run."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def resumed_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of the file that a run would continue from, if there is one."""
    for file in (partial_path(path), path):
        attrs = netcdf.load(file).attrs if file.is_file() else {}
        if attrs and (file == path or attrs.get("sequences_done")):
            return dict(attrs)
    return {}
