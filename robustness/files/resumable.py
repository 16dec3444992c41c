"""Runs that go on from what an earlier call of equal settings left on the disk.

A run that is not finished keeps what it has in a file beside its output.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import OtherSettings, Unwritable, reading
from robustness.files import changes, netcdf, ownership
from robustness.files.atomic import remove_leftovers, temporary_file
from robustness.files.lock import Lock
from robustness.statistics import stopping

SAVING_SHARE = 0.05
"""Largest share of a run's time that saving what is done so far takes."""

UNCOMPARED = (
    "created",
    "command",
    "sequences_done",
    *changes.ADJUSTABLE,
    *changes.NOTES,
    "shards_created",
    "shards_command",
)
"""Attributes in which two calls of the same run may differ."""

TALLIED = ("until_se", "shard")
"""Attributes of runs that are gone on with, or merged, when they are finished."""

Complete = Callable[[xr.Dataset, NDArray[np.int32]], xr.Dataset]


class Run:
    """A run over sequences, batch by batch: the numbers so far, in memory and on disk.

    With a path, a run goes on from what an earlier call of equal settings left there. As a context
    manager it keeps what it has when it is left by an exception.

    Parameters
    ----------
    dataset : Dataset
        What is to be filled, as from `blank`; its attributes are settings and provenance.
    tally : int array, optional
        Counts, mostly 0, that are kept along until the run is finished.
    path : path, optional
        The output.
    fresh : bool
        Whether to throw away what is there.
    complete : callable, optional
        Given dataset and tally when all is measured, returns the dataset with what follows from it.

    Raises
    ------
    Refusal
        If there is a run of other settings, another process has the output, or it cannot be
        written.
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
        """Where an unfinished run keeps what it has."""
        self.done = 0
        self._complete = complete
        self._finished = False
        self._kept, self._keeping = 0.0, 0.0
        self._lock = None if path is None else Lock(path)
        try:
            self._clear()
            if self.partial is not None:
                ownership.check(self.partial, self.kind)
            there = None if fresh or path is None else self._find()
            if there is not None:
                with reading(str(there), "choose another --out, or --fresh to replace it"):
                    self._resume(there)
            elif path is not None:
                self._try_out(path)
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or self._finished:
                return
            if not self.done:  # what an earlier run has kept is worth more
                return
            # Where writing failed it will again, and the reason is known.
            with suppress(*((Unwritable,) if issubclass(kind, Unwritable) else ())):
                self._keep()
        finally:
            self._release()

    def add(
        self,
        rows: slice,
        values: Mapping[str, NDArray[Any]],
        place: slice | None = None,
        counts: NDArray[np.int32] | None = None,
    ) -> None:
        """Take what a batch of sequences yielded, and save all there is so far.

        Saving is left for later while it would take more than a small share of the time.

        Parameters
        ----------
        rows : slice
            The sequences; all before them are done.
        values : mapping of str to array
            Of every variable the part that is new, along its last dimension.
        place : slice, optional
            Where that part stands, if not at `rows`.
        counts : int array, optional
            What is added to the tally.
        """
        for name, value in values.items():
            self.dataset[name].values[..., place or rows] = value
        if counts is not None:
            counts = self.tally + counts
        # Together, so that an interruption finds both or neither.
        self.done, self.tally = rows.stop, self.tally if counts is None else counts
        if monotonic() - self._kept >= self._keeping / SAVING_SHARE:
            self._keep()

    def lost(self, sequence: int, text: str) -> None:
        """Record what is run at once from a sequence on, because memory ran out."""
        self.dataset.attrs |= changes.noted(self.dataset.attrs, changes.LOST, sequence, text)

    @property
    def finished(self) -> bool:
        """Whether the output is there, whole."""
        return self._finished

    def measured(self) -> xr.Dataset:
        """Return the part that is done, without copying it."""
        return self.dataset.isel(sequence=slice(0, self.done))

    def finish(self, **stopped: Any) -> xr.Dataset:
        """Return the dataset of a run of which all is done, and save it in its place.

        Parameters
        ----------
        **stopped
            Attributes of a run that ends with what is measured so far.
        """
        if not self._finished:
            dataset = self.measured().assign_attrs(stopped) if stopped else self.dataset
            completed = self._complete(dataset, self.tally)
            if self.path is not None:
                kept = any(name in completed.attrs for name in TALLIED)
                netcdf.save(completed, self.path, self.tally if kept else None)
            # Only now: interrupted before, what is kept must be what can be gone on with.
            self.dataset, self._finished = completed, True
        if self.partial is not None:
            ownership.remove(self.partial, self.kind)
        return self.dataset

    def _try_out(self, path: Path) -> None:
        """Refuse a place that cannot be written before anything is measured."""
        with temporary_file(path) as temporary:
            netcdf.write_netcdf(self.dataset, self.tally, temporary)

    def _keep(self) -> None:
        if self.partial is not None:
            started = monotonic()
            netcdf.save(
                self.dataset.assign_attrs(sequences_done=self.done), self.partial, self.tally
            )
            self._kept = monotonic()
            self._keeping = self._kept - started

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _clear(self) -> None:
        """Remove what a run that was killed while it wrote has left."""
        if self._lock is None or not self._lock.held:
            return
        for file in filter(None, (self.path, self.partial)):
            remove_leftovers(file)

    def _find(self) -> Path | None:
        """Return the file to go on from; one in which nothing is done yet is none."""
        files = [file for file in (self.partial, self.path) if file and file.exists()]
        for file in files:
            if file == self.path or netcdf.load(file).attrs.get("sequences_done"):
                return file
        return None

    def _resume(self, there: Path) -> None:
        dataset = netcdf.load(there)
        found, wanted = stopping.asked(dataset.attrs), self.dataset.attrs
        # A run that stopped is gone on with by one that is to stop later.
        further = stopping.goes_further(found, wanted)
        finished = there == self.path and not further
        # A finished file may have been made with other versions; one run may not mix them.
        # Of where the tokens are from, it is the tokens that count.
        passed = {*UNCOMPARED, "source_sha256"}
        passed |= {"versions", "server_versions"} if finished else set()
        passed |= {"until_se"} if further else set()
        names = sorted(
            name
            for name in (found.keys() | wanted.keys()) - passed
            if str(found.get(name)) != str(wanted.get(name))
        )
        # A hash says less than what it is of, where that differs too.
        for name in sorted(names, key=lambda name: name.endswith("_sha256"))[:1]:
            have, want = found.get(name), wanted.get(name)
            how = f"with {name} {have}, not {want}"
            if have is None:
                how = f"without {name} {want}"
            elif want is None:
                how = f"with {name} {have}, which is not asked for now"
            raise OtherSettings(
                f"{there} was made {how}; choose another --out, or --fresh to replace it"
            )
        for name, variable in self.dataset.data_vars.items():
            if not finished or name in dataset:
                if name not in dataset or set(dataset[name].dims) != set(variable.dims):
                    raise OtherSettings(
                        f"{there} holds no {name} {variable.dims}, as is wanted; choose another "
                        "--out, or --fresh to replace it"
                    )
        if not finished:
            dataset = self._as_laid_out(there, dataset, further)
        done = int(dataset.attrs.pop("sequences_done", dataset.attrs["sequences"]))
        if not finished and self.tally.size:
            tally = netcdf.load_tally(there)
            if tally is None or tally.shape != self.tally.shape:
                raise OtherSettings(
                    f"{there} holds no counts to go on from; choose another --out, or --fresh to "
                    "replace it"
                )
            self.tally = tally
        if further:
            for name, variable in self.dataset.data_vars.items():
                variable.values[..., :done] = dataset[name].values[..., :done]
        else:
            self.dataset = dataset
        if not finished:
            self.dataset.attrs |= changes.carried(found, wanted, done)
        self.done, self._finished = done, finished

    def _as_laid_out(self, there: Path, dataset: xr.Dataset, further: bool) -> xr.Dataset:
        """Return what is gone on with in this run's order, after a check that its labels are."""
        for name, labels in self.dataset.coords.items():
            found = dataset.get(name)
            if found is None and name not in labels.dims:
                continue  # which an earlier version did not record
            if found is not None and further and "sequence" in labels.dims:
                labels = labels[: found.size]  # it stopped there
            if found is None or not _same(found, labels):
                raise OtherSettings(
                    f"{there} has another {name} than its settings say; choose another --out, or "
                    "--fresh to replace it"
                )
        for name, variable in self.dataset.data_vars.items():
            if dataset[name].dtype != variable.dtype:
                raise OtherSettings(
                    f"{there} holds {name} as {dataset[name].dtype}, not {variable.dtype}; choose "
                    "another --out, or --fresh to replace it"
                )
        return dataset.assign(
            {
                name: dataset[name].transpose(*variable.dims)
                for name, variable in self.dataset.data_vars.items()
            }
        )


def _same(found: xr.DataArray, labels: xr.DataArray) -> bool:
    """Whether labels are the same, where texts may be of either of numpy's types."""
    if {*found.dims} != {*labels.dims}:
        return False
    ours, theirs = labels.values, found.transpose(*labels.dims).values
    return ours.shape == theirs.shape and bool((ours == theirs).all())


def partial_path(path: Path) -> Path:
    """Return where an unfinished run keeps what it has."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def resumed_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of what a run goes on from, finished or not; of none, nothing."""
    for file in (partial_path(path), path):
        attrs = netcdf.load(file).attrs if file.is_file() else {}
        if attrs and (file == path or attrs.get("sequences_done")):
            return dict(attrs)
    return {}
