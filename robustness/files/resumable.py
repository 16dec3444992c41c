"""Runs that continue from the file that an earlier call with equal settings left.

An unfinished run keeps its numbers in a file beside its output.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import reading
from robustness.files import changes, netcdf, ownership
from robustness.files.matching import REPLACED, check_beginning, in_layout, kept_counts
from robustness.files.output import Output, last_words
from robustness.statistics import stopping

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
        self._output = Output(path, ownership.kind_of(dataset.attrs))
        self.path, self.partial = path, self._output.partial
        self.done = 0
        self._complete = complete
        self._finished = False
        try:
            earlier = None if fresh else self._output.earlier()
            if earlier is not None:
                with reading(str(earlier), REPLACED):
                    self._resume(earlier)
            else:
                self._output.try_out(self.dataset, self.tally)
        except BaseException:
            self._output.release()
            raise

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # Without a finished sequence, what an earlier call has saved is worth more.
            if kind is None or self._finished or not self.done:
                return
            with last_words(kind):
                self._save_progress()
        finally:
            self._output.release()

    def add(
        self,
        rows: slice,
        values: Mapping[str, NDArray[Any]],
        place: slice | None = None,
        counts: NDArray[np.int32] | None = None,
    ) -> None:
        """Add the numbers of a batch of sequences, and save all numbers so far.

        Saving is postponed while it would take too much of the time.

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
        if self._output.is_due:
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
            tallied = any(name in completed.attrs for name in TALLIED)
            self._output.complete(completed, self.tally if tallied else None)
            # Only after saving: an interruption before must leave a run that can continue.
            self.dataset, self._finished = completed, True
        self._output.forget()
        return self.dataset

    def _save_progress(self) -> None:
        if self.partial is not None:
            self._output.keep(self.dataset.assign_attrs(sequences_done=self.done), self.tally)

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
