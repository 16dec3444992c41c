"""Labelled datasets: dimensions, units, provenance, and the only way to disk.

Every file is written whole to a temporary neighbour, forced to the disk and renamed, so that a
power cut leaves the old file or the new one. A run that is not finished keeps what it has in a
file beside its output, and goes on from there.
"""

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.metrics import CLEAN_READOUTS, MODAL_SHARE, NONFINITE, READOUTS
from robustness.refusal import Refusal, first_line
from robustness.schedule import Schedule, to_text

SCHEMA = 1
"""Version of the layout of files; a file with a higher one is refused."""

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

FIGURES = ("png", "svg", "pdf")
"""Formats of figures."""

PATH_OPTIONS = ("--out", "--tokenizer")
"""Options whose value is always a path."""

UNCOMPARED = ("created", "command", "sequences_done")
"""Attributes in which two calls of the same run may differ."""


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file by way of a temporary neighbour, so that `path` is never half-written.

    Parameters
    ----------
    path : path
        The file.
    write : callable
        Given the temporary path, writes it.

    Raises
    ------
    Refusal
        If the directory cannot be written.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # The NetCDF library reports a full disk as a RuntimeError.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise Refusal(
            f"{path} cannot be written ({first_line(error)}): make room, or choose another place"
        ) from error


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

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of `dims`."""
        return tuple(len(self.coords[dim]) for dim in self.dims)


def sweep_labels(schedules: Mapping[tuple[str, int], Schedule], layers: int) -> Labels:
    """Lay out the schedules of a sweep as (intervention, layer)."""
    names = list(dict.fromkeys(name for name, _ in schedules))
    places = tuple((names.index(name), layer) for name, layer in schedules)
    texts = np.full((len(names), layers), "", dtype=object)
    for place, schedule in zip(places, schedules.values(), strict=True):
        texts[place] = to_text(schedule)
    depth = np.arange(layers) / max(1, layers - 1)
    described = {"units": "1", "long_name": "layer over the last layer"}
    coords = {
        "intervention": names,
        "layer": np.arange(layers),
        "relative_depth": ("layer", depth, described),
        "schedule": (("intervention", "layer"), texts),
    }
    return Labels(("intervention", "layer"), coords, places)


def schedule_labels(schedules: Sequence[Schedule]) -> Labels:
    """Lay out free schedules as (schedule,)."""
    texts = [to_text(schedule) for schedule in schedules]
    return Labels(("schedule",), {"schedule": texts}, tuple((i,) for i in range(len(texts))))


class Run:
    """A run over sequences, batch by batch: the numbers so far, in memory and on disk.

    What is not measured yet is NaN. With a path, a run goes on from what an earlier call of equal
    settings left there.

    Parameters
    ----------
    labels : Labels
        The schedules' layout.
    document : int64 array of shape (sequence,)
        The document of every sequence.
    dtype : dtype
        Of the readouts.
    attrs : mapping
        Settings and provenance, as from `provenance`.
    path : path, optional
        The output.
    fresh : bool
        Whether to throw away what is there.
    vocabulary : int
        How many tokens can be predicted.

    Raises
    ------
    Refusal
        If there is a run of other settings, or the output cannot be written.
    """

    def __init__(
        self,
        labels: Labels,
        document: NDArray[np.int64],
        dtype: np.dtype[Any],
        attrs: Mapping[str, Any],
        *,
        path: Path | None = None,
        fresh: bool = False,
        vocabulary: int,
    ) -> None:
        self.labels = labels
        self.path = path
        self.partial = path and path.with_name(f"{path.stem}.partial{path.suffix}")
        """Where an unfinished run keeps what it has."""
        self.done = 0
        self.dataset = _empty(labels, document, dtype, attrs)
        self.tally = np.zeros((len(labels.places), vocabulary), dtype=np.int32)
        """Of every schedule, how often each token was the top-1 prediction."""
        there = next((file for file in (self.partial, path) if file and file.exists()), None)
        if there is None or fresh:
            self._keep()
        else:
            self._resume(there)

    def add(self, rows: slice, measured: Mapping[str, NDArray[Any]]) -> None:
        """Take what a batch of sequences yielded, and save all there is so far."""
        for metric in (*READOUTS, NONFINITE):
            variable = self.dataset[metric.name].values
            for place, values in zip(self.labels.places, measured[metric.name], strict=True):
                variable[place][rows] = values
        for metric in CLEAN_READOUTS:
            self.dataset[metric.name].values[rows] = measured[metric.name]
        for counts, tokens in zip(self.tally, measured["top"], strict=True):
            counts += np.bincount(tokens[tokens >= 0], minlength=counts.size).astype(np.int32)
        self.done = rows.stop
        self._keep()

    def finish(self) -> xr.Dataset:
        """Return the dataset of a run of which all is done, and save it in its place."""
        if MODAL_SHARE.name not in self.dataset:
            share = np.full(self.labels.shape, np.nan, self.dataset[READOUTS[0].name].dtype)
            for place, counts in zip(self.labels.places, self.tally, strict=True):
                share[place] = counts.max() / counts.sum() if counts.any() else np.nan
            variable = (self.labels.dims, share, MODAL_SHARE.attrs)
            self.dataset = self.dataset.assign({MODAL_SHARE.name: variable})
            if self.path is not None:
                save(self.dataset, self.path)
        if self.partial is not None:
            self.partial.unlink(missing_ok=True)
        return self.dataset

    def _keep(self) -> None:
        if self.partial is not None:
            entries = np.flatnonzero(self.tally)
            kept = self.dataset.assign(
                tally_entry=("tally", entries), tally_count=("tally", self.tally.flat[entries])
            )
            save(kept.assign_attrs(sequences_done=self.done), self.partial)

    def _resume(self, there: Path) -> None:
        dataset = load(there)
        found, wanted = dataset.attrs, self.dataset.attrs
        # A finished file may have been made with other versions; one run may not mix them.
        passed = {*UNCOMPARED, *(() if there == self.partial else ("versions",))}
        for name in sorted((found.keys() | wanted.keys()) - passed):
            if str(found.get(name)) != str(wanted.get(name)):
                raise Refusal(
                    f"{there} was made with {name} {found.get(name)}, not {wanted.get(name)}; "
                    "choose another --out, or --fresh to replace it"
                )
        self.done = int(dataset.attrs.pop("sequences_done", dataset.sizes["sequence"]))
        if "tally_entry" in dataset:
            self.tally.flat[dataset["tally_entry"].values] = dataset["tally_count"].values
            dataset = dataset.drop_vars(("tally_entry", "tally_count"))
        self.dataset = dataset


def _empty(
    labels: Labels, document: NDArray[np.int64], dtype: np.dtype[Any], attrs: Mapping[str, Any]
) -> xr.Dataset:
    dims, sequences = (*labels.dims, "sequence"), len(document)
    shape = (*labels.shape, sequences)
    variables: dict[str, Any] = {
        metric.name: (dims, np.full(shape, np.nan, dtype), metric.attrs) for metric in READOUTS
    }
    variables |= {
        metric.name: ("sequence", np.full(sequences, np.nan, dtype), metric.attrs)
        for metric in CLEAN_READOUTS
    }
    variables[NONFINITE.name] = (dims, np.zeros(shape, np.int32), NONFINITE.attrs)
    coords = {
        **labels.coords,
        "sequence": np.arange(sequences),
        "document": ("sequence", document, {"long_name": "index of the document in the corpus"}),
    }
    return xr.Dataset(variables, coords=coords, attrs=dict(attrs))


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
        "command": command or "python",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def command_line(arguments: Sequence[str] = ()) -> str:
    """Return a command as it was typed, paths reduced to their base names."""
    words, option = [], ""
    for word in arguments or sys.argv[1:]:
        left, _, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
        path = Path(value)
        if (
            (left or option) in PATH_OPTIONS
            or value.startswith((".", "~", "/"))
            or value.count("/") > 1
            or path.exists()
        ):
            value = path.name
        words.append(f"{left}={value}" if left else value)
        option = word if word.startswith("--") and not left else ""
    return " ".join(["stages", *words])


def save(dataset: xr.Dataset, path: Path) -> None:
    """Write a dataset as NetCDF."""
    write_whole(path, lambda file: dataset.to_netcdf(file, engine="netcdf4"))


def measured(dataset: xr.Dataset) -> xr.Dataset:
    """Return the sequences of a file that are measured: all, unless its run is not finished."""
    if "sequences_done" not in dataset.attrs:
        return dataset
    done = int(dataset.attrs["sequences_done"])
    if not done:
        raise Refusal("nothing is measured yet: the run was stopped in its first batch")
    return dataset.isel(sequence=slice(0, done))


def write_into(directory: Path, write: Callable[[Path], Any]) -> None:
    """Write several files by way of a temporary directory, so that none is half-written."""
    with tempfile.TemporaryDirectory(dir=directory, prefix=".writing-") as temporary:
        write(Path(temporary))
        for file in sorted(Path(temporary).iterdir()):
            write_whole(directory / file.name, partial(os.replace, file))


def save_figure(figure: Any, path: Path) -> Path:
    """Draw a matplotlib figure into a `.png`, `.svg` or `.pdf` file, and return its path."""
    kind = path.suffix.lstrip(".").lower()
    if kind not in FIGURES:
        raise Refusal(f"{path} is no figure; its name must end in .{', .'.join(FIGURES)}")
    write_whole(path, lambda file: figure.savefig(file, format=kind, dpi=150))
    return path


def load(path: Path) -> xr.Dataset:
    """Read a dataset that this project wrote.

    Raises
    ------
    Refusal
        If there is no such file, it is no NetCDF, not ours, or of a newer schema.
    """
    if not path.exists():
        raise Refusal(f"there is no file {path}")
    try:
        dataset = xr.load_dataset(path, engine="netcdf4")
    except (OSError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        raise Refusal(f"{path} is not a NetCDF file that can be read") from error
    if "stages_schema" not in dataset.attrs:
        raise Refusal(f"{path} is a NetCDF file, but not one that stages wrote")
    found = int(dataset.attrs["stages_schema"])
    if found > SCHEMA:
        raise Refusal(
            f"{path} has schema {found}, newer than {SCHEMA}: update stages-of-inference to read it"
        )
    return dataset
