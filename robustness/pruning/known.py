"""Numbers that are measured already, in files of the same model on the same text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal, reading
from robustness.files import netcdf
from robustness.files.damage import REMEDY
from robustness.files.provenance import file_digest
from robustness.files.sequences import measured_sequences
from robustness.pruning.measuring import READ_NAMES
from robustness.pruning.record import CLEAN_LOSS, Record
from robustness.schedules import Schedule, check
from robustness.schedules.steps import maps as maps_of

EQUAL = (
    "weights_sha256",
    "config_sha256",
    "revision",
    "architecture",
    "dtype",
    "attention",
    "processing",
    "maps_sha256",
    "corpus_sha256",
    "alignment",
)
"""Names of attributes in which a file and a search must agree."""

LABELS = {
    "sweep": "schedule",
    "pairs": "schedule",
    "schedules": "schedule",
    "search": "candidate",
}
"""Name of the schedules in files that hold readouts of schedules, by their kind."""


def digests(files: Sequence[Path]) -> str | None:
    """Return the names and hashes of files, as the file of a search records them."""
    found = []
    for file in files:
        # A file that cannot be read has a message of its own.
        with netcdf.opened(file):
            found.append(f"{file.name} {file_digest(file)}")
    return ", ".join(found) or None


def take_known(record: Record, files: Sequence[Path], layers: int) -> int:
    """Take what files hold of candidates, so that it is not measured again.

    Parameters
    ----------
    record : Record
        Record to add to.
    files : sequence of path
        Files of sweeps, pairs, schedules or searches.
    layers : int
        Number of blocks of the model.

    Returns
    -------
    int
        Number of schedules that were found.

    Raises
    ------
    Refusal
        If a file is of another kind, model or text, or lacks a readout.
    """
    found = 0
    for file in files:
        dataset = netcdf.load(file)
        _check(file, dataset, record)
        with reading(str(file), REMEDY):
            sequences = record.blank.sizes["sequence"]
            for schedule, values in _schedules(measured_sequences(dataset), layers, sequences):
                batches = [
                    number
                    for number, rows in enumerate(record.batches)
                    if np.isfinite(values[READ_NAMES[0]][rows]).all()
                ]
                if batches:
                    rows = np.concatenate([_indices(record.batches[b]) for b in batches])
                    taken = {name: values[name][None, rows] for name in READ_NAMES}
                    record.take([schedule], batches, taken)
                    record.clean_loss[rows] = values[CLEAN_LOSS][rows]
                    found += 1
    return found


def _check(file: Path, dataset: xr.Dataset, record: Record) -> None:
    kind = str(dataset.attrs.get("measurement"))
    if kind not in LABELS:
        raise Refusal(f"{file} holds no schedules that were measured: name the file of a sweep")
    for name in EQUAL:
        have, want = dataset.attrs.get(name), record.attrs.get(name)
        if str(have) != str(want):
            what = "text" if name in ("corpus_sha256", "alignment") else "model"
            raise Refusal(
                f"{file} is of another {what} than this search ({name}): leave it out, or give the "
                f"options of the {what} that it was measured with"
            )
    for name in (*READ_NAMES, CLEAN_LOSS):
        if name not in dataset:
            raise Refusal(f"{file} lacks {name}: leave it out, or measure all readouts")


def _schedules(
    dataset: xr.Dataset, layers: int, sequences: int
) -> Iterator[tuple[Schedule, dict[str, NDArray[np.floating]]]]:
    """Yield every schedule of a file, and its readouts by sequence, NaN where it has none."""
    label = LABELS[str(dataset.attrs["measurement"])]
    places = dataset[label]
    for at in np.ndindex(places.shape):
        text = str(places.values[at])
        schedule = check(text, layers) if text else ()
        # Maps of the same name may have been fitted to something else.
        if not schedule or any(map(maps_of, schedule)):
            continue
        where = dict(zip(map(str, places.dims), at, strict=True))
        values = {name: _spread(dataset[name].isel(where), sequences) for name in READ_NAMES}
        values[CLEAN_LOSS] = _spread(dataset[CLEAN_LOSS], sequences)
        yield schedule, values


def _spread(values: xr.DataArray, sequences: int) -> NDArray[np.floating]:
    """Return values of all sequences of the text: shards and unfinished runs have some of them."""
    spread = np.full(sequences, np.nan, values.dtype)
    spread[values["sequence"].values] = values.values
    return spread


def _indices(rows: slice) -> NDArray[np.int64]:
    return np.arange(rows.start, rows.stop)
