"""Puts the shards of a sweep together, after a check that they are all of one run."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import OtherSettings, Refusal
from robustness.files import changes, matching, netcdf, resumable
from robustness.files.labels import blank_dataset
from robustness.files.metrics import METRICS, MODAL_SHARE
from robustness.files.provenance import file_attributes
from robustness.files.tally import modal_share
from robustness.sweeps import token_file
from robustness.sweeps.shards import Shard, parse_shard
from robustness.sweeps.token_layout import beside
from robustness.sweeps.token_merging import check_token_files, merge_token_files

OWN = (
    *(name for name in matching.FREE_ATTRIBUTES if name not in changes.ADJUSTABLE),
    "shard",
    "sequences",
    "tokens",
)
"""Attributes in which the shards of one run differ.

All began with the same batches, by which it was divided."""


def merge(
    files: Sequence[Path], out: Path | None = None, *, fresh: bool = False, command: str = ""
) -> xr.Dataset:
    """Put the shards of a run together.

    Parameters
    ----------
    files : sequence of path
        What `sweep` left of every shard, in any order. The files of their tokens are found beside
        them, whether they are named or not.
    out : path, optional
        Where the whole is saved.
    fresh : bool
        Whether to throw away what is there.
    command : str
        The command line, for the record.

    Returns
    -------
    Dataset
        What the run would have left without shards: every number of a sequence bit for bit, and
        shares from the sums of all counts. The attributes `shards_created` and `shards_command`
        say when and by which commands the shards were made.

    Raises
    ------
    Refusal
        If a file is no shard or not finished, settings differ, a shard is missing or there twice,
        or `out` holds something else.
    """
    shards = _load_shards(files, out)
    first = next(iter(shards.values()))
    # Without a path for the whole there is nowhere to put single tokens.
    keeps_tokens = first.attrs.get("per_token") is not None and out is not None
    if keeps_tokens:
        check_token_files(list(shards))
    attributes = _whole(shards) | _provenance(shards, command)
    tallies = _load_tallies(shards)
    share, fits = first[MODAL_SHARE.name], _fits(first)

    def complete(dataset: xr.Dataset, tally: NDArray[np.int32]) -> xr.Dataset:
        values = np.full(share.shape, np.nan, share.dtype)
        values[fits] = modal_share(tally, share.dtype)
        return dataset.assign({MODAL_SHARE.name: (share.dims, values, MODAL_SHARE.attrs)})

    blank = _blank(shards, attributes)
    measured = [str(name) for name in blank.data_vars]
    run = resumable.Run(
        blank,
        np.zeros_like(tallies[0]),
        path=out,
        # What an interrupted merge left may be of other files than are there now.
        fresh=fresh or out is None or not out.exists(),
        complete=complete,
    )
    with run:
        _add_shards(run, measured, list(shards.values()), tallies)
        if out is not None and keeps_tokens:
            if not (run.finished and beside(out).exists()):
                # Before the file that says that they are there.
                merge_token_files(list(shards), out, run.dataset)
        dataset = run.finish()
        if out is not None and not keeps_tokens:
            token_file.remove(out)
        return dataset


def _load_shards(files: Sequence[Path], out: Path | None) -> dict[Path, xr.Dataset]:
    """Load the shards in order, after a check that they are all of one run and none is the output.

    The files of their tokens are passed over.
    """
    for file in files:
        if files.count(file) > 1:
            raise Refusal(f"{file} was given twice")
    tokens = {beside(file) for file in files}
    shards = _in_order({file: _load(file) for file in files if file not in tokens})
    if out is not None and out.resolve() in {file.resolve() for file in shards}:
        raise Refusal(f"{out} is one of the shards: choose another `out`")
    _alike(shards)
    return shards


def _load_tallies(shards: Mapping[Path, xr.Dataset]) -> list[NDArray[np.int32]]:
    """Load the counts of every shard, which are of the same tokens."""
    tallies = [_tally(file, dataset) for file, dataset in shards.items()]
    for file, tally in zip(shards, tallies, strict=True):
        if tally.shape != tallies[0].shape:
            raise Refusal(f"{_damaged(file)} (its counts are of other tokens)")
    return tallies


def _blank(shards: Mapping[Path, xr.Dataset], attributes: Mapping[str, Any]) -> xr.Dataset:
    """Return the dataset of the whole run, in which nothing is measured yet."""
    datasets = list(shards.values())
    first = datasets[0]
    variables = {}
    for name, variable in first.data_vars.items():
        if "sequence" in variable.dims and name in METRICS:
            variables[str(name)] = (METRICS[str(name)], tuple(map(str, variable.dims)))
    coords: dict[Any, Any] = {}
    joined: dict[Any, Any] = {}
    for name, coord in first.coords.items():
        if "sequence" in coord.dims:
            values = np.concatenate([each[name].values for each in datasets])
            joined[name] = (coord.dims, values, coord.attrs)
        else:
            coords[name] = coord
    kind = next(first[name].dtype for name in variables if not METRICS[name].count)
    return blank_dataset(variables, coords | joined, attributes, kind)


def _add_shards(
    run: resumable.Run,
    names: Sequence[str],
    datasets: Sequence[xr.Dataset],
    tallies: Sequence[NDArray[np.int32]],
) -> None:
    """Add the values, by name, of every shard that the run does not have yet."""
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


def _alike(shards: Mapping[Path, xr.Dataset]) -> None:
    """Refuse shards that hold other variables or labels than the first."""
    first = next(iter(shards.values()))
    if MODAL_SHARE.name not in first or "schedule" not in first.coords:
        raise Refusal(f"{_damaged(next(iter(shards)))} (it has no {MODAL_SHARE.name} or schedule)")
    for file, dataset in shards.items():
        names = [*(name for name in first.data_vars if name in METRICS), *first.coords]
        for name in names:
            ours, theirs = first[name], dataset.get(name)
            if theirs is None or ours.dims != theirs.dims or ours.dtype != theirs.dtype:
                raise Refusal(f"{_damaged(file)} (its {name} is not that of the first shard)")
            if "sequence" not in ours.dims and name in first.coords and not ours.equals(theirs):
                raise Refusal(f"{_damaged(file)} (its {name} is not that of the first shard)")


def _damaged(file: Path) -> str:
    return f"{file} is damaged or changed: run its command again with `fresh`"


def _in_order(datasets: Mapping[Path, xr.Dataset]) -> dict[Path, xr.Dataset]:
    """Order the shards, of which each must be there once, and all of one run."""
    files = list(datasets)
    attrs = {file: datasets[file].attrs for file in files}
    first = attrs[files[0]]
    for file in files[1:]:
        for name in sorted((first.keys() | attrs[file].keys()) - {*OWN}):
            ours, theirs = first.get(name), attrs[file].get(name)
            if str(ours) != str(theirs):
                ours, theirs = ("not set" if each is None else each for each in (ours, theirs))
                raise OtherSettings(
                    f"{files[0]} and {file} are not of one run: {name} is {ours} in the first and "
                    f"{theirs} in the second"
                )
    found: dict[Shard, list[Path]] = defaultdict(list)
    for file in files:
        found[parse_shard(attrs[file]["shard"])].append(file)
    counts = sorted({shard.count for shard in found})
    if len(counts) > 1:
        raise Refusal(
            f"the files are shards of {' and of '.join(map(str, counts))}: give those of one run"
        )
    for shard, there in found.items():
        if len(there) > 1:
            raise Refusal(f"shard {shard} is there twice: {there[0]} and {there[1]}")
    wanted = [Shard(at + 1, counts[0]) for at in range(counts[0])]
    missing = [str(shard) for shard in wanted if shard not in found]
    if missing:
        raise Refusal(f"shard {', '.join(missing)} is missing: give all {counts[0]} files")
    return {found[shard][0]: datasets[found[shard][0]] for shard in wanted}


def _whole(shards: Mapping[Path, xr.Dataset]) -> dict[str, Any]:
    """Return the settings of the run that was divided, its versions among them."""
    attrs = next(iter(shards.values())).attrs
    kept = {
        name: value
        for name, value in attrs.items()
        if name not in {*OWN, "corpus_sequences", "corpus_tokens"}
    }
    measured = sum(dataset.sizes["sequence"] for dataset in shards.values())
    if measured != attrs["corpus_sequences"]:
        raise Refusal(
            f"the shards hold {measured} sequences of {attrs['corpus_sequences']}: a file was "
            "changed, run its command again with `fresh`"
        )
    return kept | {name: attrs[f"corpus_{name}"] for name in ("sequences", "tokens")}


def _provenance(shards: Mapping[Path, xr.Dataset], command: str) -> dict[str, Any]:
    made = file_attributes({}, command)
    found = {name: made[name] for name in ("created", "command")}
    for name in ("created", "command"):
        found[f"shards_{name}"] = "; ".join(str(each.attrs[name]) for each in shards.values())
    for name in changes.NOTES:
        notes = [
            f"shard {each.attrs['shard']}: {each.attrs[name]}"
            for each in shards.values()
            if name in each.attrs
        ]
        found |= {name: "; ".join(notes)} if notes else {}
    return found


def _fits(dataset: xr.Dataset) -> Any:
    """Return where a schedule stands, in the order in which counts are kept."""
    share = dataset[MODAL_SHARE.name]
    return (dataset["schedule"].transpose(*share.dims) != "").values


def _tally(file: Path, dataset: xr.Dataset) -> Any:
    """Return the counts of a shard, after a check that they give its shares."""
    tally, share = netcdf.load_tally(file), dataset[MODAL_SHARE.name].values
    damaged = _damaged(file)
    if tally is None or len(tally) != _fits(dataset).sum():
        raise Refusal(f"{damaged} (its counts are missing)")
    if not np.array_equal(share[_fits(dataset)], modal_share(tally, share.dtype), equal_nan=True):
        raise Refusal(f"{damaged} (its counts do not give its {MODAL_SHARE.name})")
    if tally.sum(1).max(initial=0) > dataset.attrs["tokens"]:
        raise Refusal(f"{damaged} (it counts more tokens than it has)")
    return tally
