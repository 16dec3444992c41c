"""Labelled datasets: dimensions, units, provenance, and the only way to disk.

Every file is written whole to a temporary neighbour, forced to the disk and renamed, so that a
power cut leaves the old file or the new one. A run that is not finished keeps what it has in a
file beside its output, and goes on from there.
"""

import errno
import hashlib
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

import netCDF4
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import InUse, OtherSettings, Refusal, Unwritable, first_line, reading
from robustness.files import changes, container, contract, ownership
from robustness.files.contract import REMEDY, SCHEMA, TALLY
from robustness.files.lock import Lock, is_held
from robustness.files.metrics import METRICS, Metric
from robustness.files.ownership import follow
from robustness.schedules.interventions import Place
from robustness.schedules.schedule import Schedule, to_text
from robustness.statistics import stopping

LIBRARIES = (
    "stages-of-inference",
    "torch",
    "transformers",
    "nnsight",
    "datasets",
    "numpy",
    "xarray",
    "netCDF4",
)

KEEPING = 0.05
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

REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EACCES: "have writing permitted",
    errno.EPERM: "have writing permitted",
    errno.EROFS: "mount it for writing",
    errno.EEXIST: "move the file that stands where a directory would be",
    errno.ENOTDIR: "move the file that stands where a directory would be",
    errno.EISDIR: "move the directory that has its name",
    errno.ENAMETOOLONG: "give it a shorter name",
}
"""What would do where a file cannot be written, by the kind of error."""


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file by way of a temporary neighbour, so that `path` is never half-written.

    For one who has the lock of the output. Of a link, the target is written.

    Parameters
    ----------
    path : path
        The file.
    write : callable
        Given the temporary path, writes it.

    Raises
    ------
    Unwritable
        If the directory cannot be written, or another file would be replaced than one of ours of
        the same kind.
    """
    with _temporary(path) as temporary:
        place = follow(path)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        ownership.check(path, ownership.kind(temporary, path.suffix))
        os.replace(temporary, place)
        _sync(place.parent)


def write_alone(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file that no run is under way for: as `write_whole`, under a lock of its own."""
    with nullcontext() if is_held(path) else Lock(path):
        if is_held(path):
            clear(path)
        write_whole(path, write)


def clear(path: Path) -> None:
    """Remove what a process that was killed while it wrote a file has left of it.

    For one who has the lock of the output alone. What another user left, and nobody else may
    remove, stays.
    """
    for torn in ownership.torn(path):
        with suppress(OSError):
            torn.unlink(missing_ok=True)


def clear_alone(path: Path) -> None:
    """Remove what is left of a file, and of its lock, where no run is under way for it."""
    if path.parent.is_dir() and not is_held(path):
        with suppress(InUse), Lock(path) as lock:
            if lock.held:
                clear(path)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Make an empty file beside another; say what is the matter where it cannot be written."""
    temporary = ownership.temporary(follow(path))
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        # Nobody else's, and through no link, even where others may write too.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
    except BaseException as error:
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        reason = _reason(error, temporary)
        raise Unwritable(f"{path} cannot be written {reason}, or choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    """Force to the disk which files a directory has, where that can be done."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: BaseException, temporary: Path) -> str:
    """Say why a file cannot be written, and what would do.

    The NetCDF library reports a full disk as an error of its own, and a read-only one as a lack of
    permission, so it is tried again without it.
    """
    if not isinstance(error, OSError) or error.errno in (None, errno.EACCES):
        try:
            with temporary.open("ab", buffering=0) as file:
                file.write(bytes(2**20))
                os.fsync(file.fileno())
        except OSError as found:
            error = found
    if not isinstance(error, OSError) or error.errno not in REMEDIES:
        return f"({first_line(error)}): mend that"
    return f"({os.strerror(error.errno or 0)}): {REMEDIES[error.errno or 0]}"


@dataclass(frozen=True)
class Labels:
    """How schedules are laid out in a dataset.

    Attributes
    ----------
    dims : tuple of str
        The dimensions that tell schedules apart.
    coords : dict
        Coordinates over them.
    places : tuple
        Of every schedule, its index along each of `dims`.
    """

    dims: tuple[str, ...]
    coords: dict[str, Any]
    places: tuple[tuple[int, ...], ...]

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Lay out values (schedule, …) as (*dims, …), NaN (or 0) where there is no schedule."""
        shape = (*(len(self.coords[dim]) for dim in self.dims), *values.shape[1:])
        missing = np.nan if np.issubdtype(values.dtype, np.floating) else 0
        spread = np.full(shape, missing, values.dtype)
        for place, value in zip(self.places, values, strict=True):
            spread[place] = value
        return spread


def sweep_labels(
    schedules: Mapping[Place, Schedule],
    layers: int,
    chosen: Sequence[int] | None = None,
) -> Labels:
    """Lay out the schedules of a sweep as (intervention, layer), over all layers or some.

    Those of interventions on two layers as (intervention, layer, layer_to).
    """
    names = list(dict.fromkeys(name for name, *_ in schedules))
    there = range(layers) if chosen is None else sorted(set(chosen))
    dims = ("intervention", "layer", "layer_to")[: len(next(iter(schedules)))]
    places = tuple((names.index(name), *map(there.index, at)) for name, *at in schedules)
    texts = np.full((len(names), *[len(there)] * len(dims[1:])), "", dtype=object)
    for place, schedule in zip(places, schedules.values(), strict=True):
        texts[place] = to_text(schedule)
    coords = {"intervention": names, **layer_coords(layers, there), "schedule": (dims, texts)}
    if "layer_to" in dims:
        coords["layer_to"] = coords["layer"]
    return Labels(dims, coords, places)


def layer_coords(layers: int, chosen: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the coordinates of layers: their index, and where between first and last they are."""
    described = {"units": "1", "long_name": "layer over the last layer"}
    there = np.array(range(layers) if chosen is None else chosen)
    depth = there / max(1, layers - 1)
    return {"layer": there, "relative_depth": ("layer", depth, described)}


def schedule_labels(schedules: Sequence[Schedule]) -> Labels:
    """Lay out free schedules as (schedule,)."""
    texts = [to_text(schedule) for schedule in schedules]
    return Labels(("schedule",), {"schedule": texts}, tuple((i,) for i in range(len(texts))))


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
        self.partial = path and partial_of(path)
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
        if monotonic() - self._kept >= self._keeping / KEEPING:
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
                save(completed, self.path, self.tally if kept else None)
            # Only now: interrupted before, what is kept must be what can be gone on with.
            self.dataset, self._finished = completed, True
        if self.partial is not None:
            ownership.remove(self.partial, self.kind)
        return self.dataset

    def _try_out(self, path: Path) -> None:
        """Refuse a place that cannot be written before anything is measured."""
        with _temporary(path) as temporary:
            _write(self.dataset, self.tally, temporary)

    def _keep(self) -> None:
        if self.partial is not None:
            started = monotonic()
            save(self.dataset.assign_attrs(sequences_done=self.done), self.partial, self.tally)
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
            clear(file)

    def _find(self) -> Path | None:
        """Return the file to go on from; one in which nothing is done yet is none."""
        files = [file for file in (self.partial, self.path) if file and file.exists()]
        for file in files:
            if file == self.path or load(file).attrs.get("sequences_done"):
                return file
        return None

    def _resume(self, there: Path) -> None:
        dataset = load(there)
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
            tally = load_tally(there)
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


def partial_of(path: Path) -> Path:
    """Return where an unfinished run keeps what it has."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def begun(path: Path) -> dict[str, Any]:
    """Return the attributes of what a run goes on from, finished or not; of none, nothing."""
    for file in (partial_of(path), path):
        attrs = load(file).attrs if file.is_file() else {}
        if attrs and (file == path or attrs.get("sequences_done")):
            return dict(attrs)
    return {}


def blank(
    variables: Mapping[str, tuple[Metric, tuple[str, ...]]],
    coords: Mapping[str, Any],
    attrs: Mapping[str, Any],
    dtype: Any = np.float32,
) -> xr.Dataset:
    """Return a dataset in which nothing is measured yet: NaN, or 0 where whole numbers are kept.

    Parameters
    ----------
    variables : mapping of str to tuple
        Of every variable its metric and its dimensions.
    coords : mapping
        Coordinates, one along each dimension at least.
    attrs : mapping
        Settings and provenance, as from `provenance`.
    dtype : dtype
        Of the variables that are no counts.
    """
    empty = xr.Dataset(coords=dict(coords), attrs=dict(attrs))
    for name, (metric, dims) in variables.items():
        shape = tuple(empty.sizes[dim] for dim in dims)
        values = np.zeros(shape, np.int32) if metric.count else np.full(shape, np.nan, dtype)
        empty[name] = (dims, values, metric.attrs)
    return empty


COUNTED = "tokens_counted"
"""The coordinate of sequences that are not of one length."""


def sequence_coords(
    document: NDArray[np.int64], first: int = 0, counted: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Return the coordinates of sequences.

    Parameters
    ----------
    document : array of shape (sequence,)
        The document that each was cut from.
    first : int
        The index of the first of them.
    counted : array of shape (sequence,), optional
        Over how many tokens their means are, where that is not the same for all.
    """
    described = {"long_name": "index of the document in the corpus"}
    found: dict[str, Any] = {
        "sequence": np.arange(first, first + len(document)),
        "document": ("sequence", document, described),
    }
    if counted is not None:
        weighs = {"units": "1", "long_name": "tokens that the means of a sequence are over"}
        found[COUNTED] = ("sequence", counted, weighs)
    return found


def mean_over_tokens(values: xr.DataArray) -> xr.DataArray:
    """Return the mean over tokens, (…), of values that are means over sequences, (…, sequence).

    Where sequences are documents, `values.mean("sequence")` is the mean over documents instead, of
    which a short one weighs as much as a long one. Where they are windows, the two are the same.
    """
    if COUNTED not in values.coords:
        return values.mean("sequence", skipna=False)
    weights = values[COUNTED]
    total: xr.DataArray = (values * weights).sum("sequence", skipna=False) / weights.sum()
    return total.drop_vars(COUNTED, errors="ignore")


def provenance(settings: Mapping[str, Any], command: str = "") -> dict[str, Any]:
    """Return the attributes of a file: its settings, and when and with what it was made."""
    versions = [f"{name} {version(name)}" for name in LIBRARIES]
    return {
        "stages_schema": SCHEMA,
        **{name: value for name, value in settings.items() if value not in (None, "")},
        "conventions": (
            "information in nats; KL(clean || intervened); absolute losses and entropies; "
            "means over the tokens of a sequence"
        ),
        "versions": ", ".join((*versions, f"python {platform.python_version()}")),
        # A word that names a file whose name is no text holds halves of surrogate pairs.
        "command": (command or "python").encode("utf-8", "backslashreplace").decode(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@contextmanager
def opened_part(path: Path, *, whole: bool = True) -> Iterator[Any]:
    """Open a part of a file, which has no provenance of its own, as a netCDF4.Dataset."""
    container.check(path)
    with reading(str(path), REMEDY):
        file = netCDF4.Dataset(place(path))
    with file:
        with reading(str(path), REMEDY):
            contract.examine_part(path, file, whole=whole)
        yield file


def load_part(path: Path) -> xr.Dataset:
    """Read a part of a file."""
    with opened_part(path), reading(str(path), REMEDY):
        return _read(path)


def modal_share(tally: NDArray[np.int32], dtype: Any) -> NDArray[Any]:
    """Return the share of the most frequent token, of counts (run, token); NaN where none is."""
    share = (tally.max(1) / tally.sum(1).clip(1)).astype(dtype)
    share[share == 0] = np.nan
    return share


def version_of_project() -> str:
    """Return the version of this project."""
    return version(LIBRARIES[0])


def digest(value: Any) -> str:
    """Return the SHA-256 of what is measured on, where that is no corpus: of its text form."""
    return hashlib.sha256(repr(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of what is in a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(dataset: xr.Dataset, path: Path, tally: NDArray[np.int32] | None = None) -> None:
    """Write a dataset as NetCDF, and counts, of which most are 0, into a group of the file.

    For one who has the lock of the output: see `save_alone`.
    """
    write_whole(path, partial(_write, dataset, tally))


def save_alone(dataset: xr.Dataset, path: Path) -> None:
    """Write a dataset as NetCDF where no run is under way."""
    write_alone(path, partial(_write, dataset, None))


def _write(dataset: xr.Dataset, tally: NDArray[np.int32] | None, file: Path) -> None:
    dataset.to_netcdf(file, engine="netcdf4")
    if tally is not None and tally.size:
        entries = np.flatnonzero(tally)
        counts = xr.Dataset(
            {"entry": ("cell", entries), "count": ("cell", tally.flat[entries])},
            attrs={"shape": tally.shape, "long_name": "counts that are not 0"},
        )
        counts.to_netcdf(file, engine="netcdf4", group=TALLY, mode="a")


def load_tally(path: Path) -> NDArray[np.int32] | None:
    """Read the counts that were saved with a dataset, if there are any."""
    with opened(path) as file:
        if TALLY not in file.groups:
            return None
        with reading(str(path), REMEDY):
            counts = _read(path, group=TALLY)
            entries, values = counts["entry"].values, counts["count"].values
            shape = contract.check_tally(path, counts.attrs["shape"], entries, values)
    tally = np.zeros(shape, np.int32)
    tally.flat[entries] = values
    return tally


def measured(dataset: xr.Dataset) -> xr.Dataset:
    """Return the sequences of a file that are measured: all, unless its run is not finished.

    Of one with values of single tokens, their means.
    """
    if "token" in dataset.dims:
        dataset = _over_tokens(dataset)
    if "sequences_done" not in dataset.attrs:
        return dataset
    done = int(dataset.attrs["sequences_done"])
    if not done:
        raise Refusal("nothing is measured yet: the run was stopped in its first batch")
    if "batch" in dataset.dims:
        return dataset.isel(batch=slice(0, done // int(dataset.attrs["batch_sequences"])))
    if "sequence" not in dataset.dims:
        raise Refusal("the run is not finished, and what it measures is known when all of it is")
    return dataset.isel(sequence=slice(0, done))


def counting(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """Return which positions a readout of single tokens is of, (sequence, token)."""
    which = "predicted" if name.removeprefix("clean_") in {"loss", "accuracy"} else "compared"
    if which not in dataset:
        raise Refusal(
            "the file does not say which positions count, as an early version left it: measure it "
            "anew with --fresh"
        )
    return dataset[which] == 1


def _over_tokens(dataset: xr.Dataset) -> xr.Dataset:
    """Return means over the positions that count, of which one without a number is no number."""
    found = {}
    for name, values in dataset.data_vars.items():
        if name in METRICS:
            counts = counting(dataset, str(name))
            total = values.where(counts, 0).sum("token", skipna=False, dtype=np.float64)
            mean = total / counts.sum("token")
            found[name] = mean.astype(values.dtype).assign_attrs(values.attrs)
    return dataset.drop_dims("token").assign(found)


def save_figure(figure: Any, path: Path) -> Path:
    """Draw a matplotlib figure into a `.png`, `.svg` or `.pdf` file, and return its path."""
    ownership.check(path, ownership.FIGURE)
    kind = path.suffix.lstrip(".").lower()
    said: dict[str, Any] = {
        "png": {"Software": ownership.MARK},
        "svg": {"Creator": ownership.MARK, "Date": None},
        "pdf": {"Creator": ownership.MARK, "CreationDate": None},
    }
    write_alone(path, lambda file: figure.savefig(file, format=kind, dpi=150, metadata=said[kind]))
    return path


@contextmanager
def opened(path: Path, *, whole: bool = True) -> Iterator[Any]:
    """Open a file that this project wrote, as a netCDF4.Dataset of which nothing is read yet.

    Parameters
    ----------
    path : path
        The file.
    whole : bool
        Whether all of it will be read at once, for which there must be memory.

    Raises
    ------
    Refusal
        If there is no such file, it is no NetCDF, not ours, of a newer schema, or it would have the
        library read other files, or more than memory holds.
    """
    with opened_part(path, whole=whole) as file:
        with reading(str(path), REMEDY):
            contract.examine(path, file, whole=whole)
        yield file


def load(path: Path) -> xr.Dataset:
    """Read a dataset that this project wrote.

    Raises
    ------
    Refusal
        As `opened`; and if it does not hold what a file of its kind holds.
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
        contract.check(path, dataset)
    return dataset


def _read(path: Path, **options: Any) -> xr.Dataset:
    """Read a file or a group of it as it stands: no units are made into times."""
    return xr.load_dataset(
        place(path), engine="netcdf4", decode_times=False, decode_timedelta=False, **options
    )


def place(path: Path) -> str:
    """Return a path that the NetCDF library cannot take for an address of the network."""
    return os.path.abspath(path)
