"""Merging: the shards of a sweep joined, after a check that they are all of one run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import OtherSettings, Refusal
from robustness.files import changes, matching, netcdf, resumable
from robustness.files.labels import blank_dataset
from robustness.files.metrics import MODAL_SHARE, metric_of
from robustness.files.precision_floor import floor_attributes
from robustness.files.provenance import file_attributes
from robustness.files.tally import modal_share
from robustness.sweeps import token_file
from robustness.sweeps.shards import Shard, parse_shard
from robustness.sweeps.token_layout import beside
from robustness.sweeps.token_merging import check_token_files, merge_token_files

SHARD_ATTRIBUTES = (
    *(name for name in matching.FREE_ATTRIBUTES if name not in changes.OF_BATCHES),
    "shard",
    "sequences",
    "tokens",
)
"""Attributes that may differ between the shards of one run.

Of the attributes that a run may change when it resumes, those that set the size of batches are not
among them: a run is divided by its batches, which are the same for all of its shards."""


def merge(
    files: Sequence[Path], out: Path | None = None, *, fresh: bool = False, command: str = ""
) -> xr.Dataset:
    """Join the shards of a run.

    Parameters
    ----------
    files : sequence of path
        Files of all shards, as `sweep` saved them, in any order. Files of single tokens are read
        from beside them, whether they are named or not.
    out : path, optional
        Path of the file to write.
    fresh : bool
        Whether to discard an existing file at `out`.
    command : str
        Command line that is recorded in the file.

    Returns
    -------
    Dataset
        The dataset that the run would have saved without shards: every number of a sequence bit
        for bit, and shares from the sums of all counts. The attributes `shards_created` and
        `shards_command` say when and by which commands the shards were made.

    Raises
    ------
    Refusal
        If a file is no shard or not finished, settings differ, a shard is missing or given twice,
        or `out` holds something else.
    """
    shards = _load_shards(files, out)
    first = next(iter(shards.values()))
    # Without a path for the whole there is nowhere to put single tokens.
    keeps_tokens = first.attrs.get("per_token") is not None and out is not None
    if keeps_tokens:
        check_token_files(list(shards))
    attributes = _settings_of_run(shards) | _provenance(shards, command)
    # Every shard measured the same sequences of the whole text.
    attributes |= floor_attributes(first.attrs)
    tallies = _load_tallies(shards)
    share, has_schedule = first[MODAL_SHARE.name], _has_schedule(first)

    def complete(dataset: xr.Dataset, tally: NDArray[np.int32]) -> xr.Dataset:
        values = np.full(share.shape, np.nan, share.dtype)
        values[has_schedule] = modal_share(tally, share.dtype)
        return dataset.assign({MODAL_SHARE.name: (share.dims, values, MODAL_SHARE.attrs)})

    blank = _blank(shards, attributes)
    measured = [str(name) for name in blank.data_vars]
    run = resumable.Run(
        blank,
        np.zeros_like(tallies[0]),
        path=out,
        # An interrupted merge may have read other shards than are given now: it is not resumed.
        fresh=fresh or out is None or not out.exists(),
        complete=complete,
    )
    with run:
        _add_shards(run, measured, list(shards.values()), tallies)
        if out is not None and keeps_tokens:
            if not (run.finished and beside(out).exists()):
                # Saved first: the file of the run says that its tokens exist.
                merge_token_files(list(shards), out, run.dataset)
        dataset = run.finish()
        if out is not None and not keeps_tokens:
            token_file.remove(out)
        return dataset


def _load_shards(files: Sequence[Path], out: Path | None) -> dict[Path, xr.Dataset]:
    """Load the shards in order, after a check that they are all of one run and none is the output.

    Files of single tokens among them are skipped.
    """
    for file in files:
        if files.count(file) > 1:
            raise Refusal(f"{file} was given twice")
    # A pattern such as `sweep.shard-*.nc` names the files of single tokens too.
    tokens = {beside(file) for file in files}
    datasets = {file: _load(file) for file in files if file not in tokens}
    if not datasets:
        raise Refusal("no shard is given: give the files of all shards of a run")
    _check_settings(datasets)
    shards = _in_order(datasets)
    if out is not None and out.resolve() in {file.resolve() for file in shards}:
        raise Refusal(f"{out} is one of the shards: choose another `out`")
    _check_structure(shards)
    return shards


def _load_tallies(shards: Mapping[Path, xr.Dataset]) -> list[NDArray[np.int32]]:
    """Load the counts of every shard, which must be of one vocabulary."""
    tallies: list[NDArray[np.int32]] = []
    for file, dataset in shards.items():
        tallies.append(_load_tally(file, dataset))
        if tallies[-1].shape != tallies[0].shape:
            raise Refusal(f"{_damaged(file)} (its counts are of other tokens)")
    return tallies


def _blank(shards: Mapping[Path, xr.Dataset], attributes: Mapping[str, Any]) -> xr.Dataset:
    """Return the dataset of the whole run, in which nothing is measured yet."""
    datasets = list(shards.values())
    first = datasets[0]
    variables = {}
    for name, variable in first.data_vars.items():
        metric = metric_of(str(name), variable.attrs)
        if "sequence" in variable.dims and metric is not None:
            variables[str(name)] = (metric, tuple(map(str, variable.dims)))
    shared: dict[Any, Any] = {}
    joined: dict[Any, Any] = {}
    for name, coord in first.coords.items():
        if "sequence" in coord.dims:
            values = np.concatenate([dataset[name].values for dataset in datasets])
            joined[name] = (coord.dims, values, coord.attrs)
        else:
            shared[name] = coord
    dtype = next(first[name].dtype for name, (metric, _) in variables.items() if not metric.count)
    return blank_dataset(variables, shared | joined, attributes, dtype)


def _add_shards(
    run: resumable.Run,
    names: Sequence[str],
    datasets: Sequence[xr.Dataset],
    tallies: Sequence[NDArray[np.int32]],
) -> None:
    """Add the variables `names` of every shard that the run does not have yet."""
    begin = 0
    for dataset, tally in zip(datasets, tallies, strict=True):
        rows = slice(begin, begin + dataset.sizes["sequence"])
        begin = rows.stop
        if rows.start >= run.done:
            run.add(rows, {name: dataset[name].values for name in names}, counts=tally)


def _load(file: Path) -> xr.Dataset:
    """Return the finished file of a shard."""
    unfinished = file.with_name(f"{file.stem}.partial{file.suffix}")
    if not file.exists() and unfinished.exists():
        file = unfinished
    dataset = netcdf.load(file)
    if "token" in dataset.dims:
        raise Refusal(f"{file} holds single tokens: give the file of the shard that it is beside")
    if "sequences_done" in dataset.attrs:
        raise Refusal(
            f"{file} is not finished ({dataset.attrs['sequences_done']} of "
            f"{dataset.attrs['sequences']} sequences): run its command again, then merge"
        )
    if "shard" not in dataset.attrs:
        raise Refusal(f"{file} is no shard: it was not made with `shard`")
    return dataset


def _check_structure(shards: Mapping[Path, xr.Dataset]) -> None:
    """Refuse shards whose variables or labels differ from those of the first."""
    first = next(iter(shards.values()))
    if MODAL_SHARE.name not in first or "schedule" not in first.coords:
        raise Refusal(f"{_damaged(next(iter(shards)))} (it has no {MODAL_SHARE.name} or schedule)")
    variables = first.data_vars.items()
    readouts = [name for name, each in variables if metric_of(str(name), each.attrs)]
    for file, dataset in shards.items():
        for name in (*readouts, *first.coords):
            ours, theirs = first[name], dataset.get(name)
            fits = theirs is not None and (ours.dims, ours.dtype) == (theirs.dims, theirs.dtype)
            # Labels of schedules are those of the run; every shard has sequences of its own.
            if name in first.coords and "sequence" not in ours.dims:
                fits = fits and ours.equals(theirs)
            if not fits:
                raise Refusal(
                    f"the {name} of {file} is not that of the first shard: make all shards with "
                    "the same model, interventions and metrics"
                )


def _damaged(file: Path) -> str:
    return f"{file} is damaged or changed: run its command again with `fresh`"


def _check_settings(datasets: Mapping[Path, xr.Dataset]) -> None:
    """Refuse shards whose settings differ from those of the first."""
    (first, of_first), *others = ((file, dataset.attrs) for file, dataset in datasets.items())
    for file, attrs in others:
        for name in sorted((of_first.keys() | attrs.keys()) - {*SHARD_ATTRIBUTES}):
            ours, theirs = of_first.get(name), attrs.get(name)
            if str(ours) != str(theirs):
                raise OtherSettings(
                    f"{first} and {file} are not of one run: {name} is {_shown(ours)} in the first "
                    f"and {_shown(theirs)} in the second"
                )


def _shown(setting: Any) -> str:
    return "not set" if setting is None else str(setting)


def _in_order(datasets: Mapping[Path, xr.Dataset]) -> dict[Path, xr.Dataset]:
    """Order the shards, and refuse them unless each shard of one division is given once."""
    files: dict[Shard, Path] = {}
    for file, dataset in datasets.items():
        shard = parse_shard(dataset.attrs["shard"])
        if shard in files:
            raise Refusal(f"shard {shard} is there twice: {files[shard]} and {file}")
        files[shard] = file
    counts = sorted({shard.count for shard in files})
    if len(counts) > 1:
        raise Refusal(
            f"the files are shards of {' and of '.join(map(str, counts))}: give those of one run"
        )
    ordered, missing = {}, []
    for index in range(1, counts[0] + 1):
        shard = Shard(index, counts[0])
        if shard in files:
            ordered[files[shard]] = datasets[files[shard]]
        else:
            missing.append(str(shard))
    if missing:
        raise Refusal(f"shard {', '.join(missing)} is missing: give all {counts[0]} files")
    return ordered


def _settings_of_run(shards: Mapping[Path, xr.Dataset]) -> dict[str, Any]:
    """Return the settings of the run that was divided, its versions included."""
    attrs = next(iter(shards.values())).attrs
    of_shard = {*SHARD_ATTRIBUTES, "corpus_sequences", "corpus_tokens"}
    settings = {name: value for name, value in attrs.items() if name not in of_shard}
    measured = sum(dataset.sizes["sequence"] for dataset in shards.values())
    if measured != attrs["corpus_sequences"]:
        raise Refusal(
            f"the shards hold {measured} sequences of {attrs['corpus_sequences']}: a file was "
            "changed, run its command again with `fresh`"
        )
    for name in ("sequences", "tokens"):
        settings[name] = attrs[f"corpus_{name}"]
    return settings


def _provenance(shards: Mapping[Path, xr.Dataset], command: str) -> dict[str, Any]:
    """Return when and by which commands the whole and its shards were made, and their notes."""
    made = file_attributes({}, command)
    provenance = {name: made[name] for name in ("created", "command")}
    for name in ("created", "command"):
        of_shards = (str(dataset.attrs[name]) for dataset in shards.values())
        provenance[f"shards_{name}"] = "; ".join(of_shards)
    for name in changes.NOTES:
        notes = []
        for dataset in shards.values():
            if name in dataset.attrs:
                notes.append(f"shard {dataset.attrs['shard']}: {dataset.attrs[name]}")
        if notes:
            provenance[name] = "; ".join(notes)
    return provenance


def _has_schedule(dataset: xr.Dataset) -> Any:
    """Return which places of the modal share have a schedule; counts are in their order."""
    share = dataset[MODAL_SHARE.name]
    return (dataset["schedule"].transpose(*share.dims) != "").values


def _load_tally(file: Path, dataset: xr.Dataset) -> NDArray[np.int32]:
    """Return the counts of a shard, after a check that they yield its shares."""
    tally, share = netcdf.load_tally(file), dataset[MODAL_SHARE.name].values
    damaged = _damaged(file)
    if tally is None or len(tally) != _has_schedule(dataset).sum():
        raise Refusal(f"{damaged} (its counts are missing)")
    shares = modal_share(tally, share.dtype)
    if not np.array_equal(share[_has_schedule(dataset)], shares, equal_nan=True):
        raise Refusal(f"{damaged} (its counts do not give its {MODAL_SHARE.name})")
    # Counts multiplied by one number yield the same shares.
    if tally.sum(1).max(initial=0) > dataset.attrs["tokens"]:
        raise Refusal(f"{damaged} (it counts more tokens than it has)")
    return tally
