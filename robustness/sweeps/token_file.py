"""Values of single tokens: kept batch by batch, and put together on disk when all are there.

Of a long run they do not fit into memory. Each batch leaves a part of its own, written whole like
any file; the run that goes on after an interruption writes those again that it runs again. The file
is then filled part by part, so that no more than one is held at a time.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal, Unwritable, reading
from robustness.files import netcdf, ownership, resumable
from robustness.files.atomic import remove_leftovers, write_whole
from robustness.files.damage import REMEDY
from robustness.files.labels import Labels
from robustness.files.metrics import METRICS, Metric
from robustness.files.schema import SCHEMA
from robustness.runs.batching import query_positions
from robustness.text.corpus import Corpus

PREFIX = "token_"
"""Prefix of the readouts of single tokens among the values of a batch."""


KNOWN = {
    "token_id": "token at the query position",
    "compared": "whether KL, agreement and entropy are of the query position (0 or 1)",
    "predicted": "whether loss and accuracy are of the query position (0 or 1)",
}
"""What is known of every position before anything is measured."""

KNOWN_BYTES = 4 + 1 + 1
"""Bytes of what is known of one position."""

PART = ownership.kind_of({"measurement": "part"}, ("token",))
"""The kind of the file of a part."""

SEQUENCES_COPIED = 64
"""Number of sequences that are copied at once."""


def beside(path: Path) -> Path:
    """Return where the tokens of a file's sequences are."""
    return path.with_name(f"{path.stem}.tokens{path.suffix}")


def _parts(path: Path) -> Path:
    return beside(path).with_name(f"{beside(path).stem}.parts")


def spread(
    measured: Mapping[str, NDArray[Any]],
    labels: Labels,
    first: int,
    context: int,
) -> dict[str, NDArray[Any]]:
    """Lay out what a batch yields of single tokens, over all positions of a window.

    Parameters
    ----------
    measured : mapping of str to array
        Of every readout `token_NAME` (schedule, sequence, query), of the clean ones without
        schedule.
    labels : Labels
        Of the schedules.
    first : int
        The position of the first query.
    context : int
        Tokens of a window.

    Returns
    -------
    dict of str to array
        (…, token, sequence), NaN where nothing counts.
    """
    found = {}
    for key, values in measured.items():
        laid = values if values.ndim == 2 else labels.spread(values)
        whole = np.full((*laid.shape[:-1], context), np.nan, laid.dtype)
        whole[..., first : first + laid.shape[-1]] = laid
        found[key] = np.moveaxis(whole, -1, -2)
    return found


class TokenFile:
    """The file of the tokens of a run, and its parts until it is made.

    Parameters
    ----------
    path : path
        The file of the run.
    blank : Dataset
        As the run begins: coordinates, settings and provenance.
    corpus : Corpus
        What is read.
    metrics : sequence of Metric
        What is kept of every token.
    dims : tuple of str
        Of the schedules.
    kind : dtype
        Of the numbers.
    """

    def __init__(
        self,
        path: Path,
        blank: xr.Dataset,
        corpus: Corpus,
        metrics: Sequence[Metric],
        dims: tuple[str, ...],
        kind: str,
    ) -> None:
        self.path = beside(path)
        self.parts = _parts(path)
        self._run, self._old = path, True
        self._metrics, self._dims, self._kind = metrics, dims, kind
        self._frame = _frame(blank, dims, {"token_id": corpus.tokens, **_counting(corpus)})

    def begin(self, done: int, finished: bool) -> None:
        """Refuse to go on from a run whose tokens are not there.

        Parameters
        ----------
        done : int
            Sequences that the run goes on from.
        finished : bool
            Whether all of it is done.
        """
        ownership.check(self.path, ownership.kind_of(self._frame.attrs, self._frame.sizes))
        remove_leftovers(self.path)
        _finish_removing(self._run)
        ownership.check_directory(self.parts, PART)
        there = self.parts.is_dir() or (finished and self.path.exists())
        if done and not there:
            raise Refusal(f"{self.path} is not there, or its parts: measure anew with `fresh`")
        self._old = not done
        if done and self.parts.is_dir():
            self._check(done)
            # Of batches that are run again, and perhaps are others then.
            for part in self._there():
                if int(part.stem) >= done:
                    part.unlink()

    def _check(self, done: int) -> None:
        """Refuse parts of which one is lost that has been measured."""
        end = 0
        for part in self._there():
            if int(part.stem) != end:
                break
            with netcdf.opened_part(part) as file, reading(str(part), REMEDY):
                end += len(file.dimensions["sequence"])
        if end < done:
            raise Refusal(
                f"{self.parts} has lost what was measured of sequence {end}: measure anew with "
                "`fresh`"
            )

    def _there(self) -> list[Path]:
        """Return the parts that are there, in order."""
        return sorted(part for part in self.parts.glob("*.nc") if part.stem.isdecimal())

    def add(self, rows: slice, values: Mapping[str, NDArray[Any]]) -> None:
        """Keep what a batch of sequences yielded, (…, token, sequence)."""
        if self._old:
            # Without its parts, an earlier run that is not finished could not be gone on with.
            kind = ownership.kind_of(self._frame.attrs)
            ownership.remove(resumable.partial_path(self._run), kind)
            _remove_parts(self._run)
            self._old = False
        part = xr.Dataset(
            {name: (self._dims_of(name), value) for name, value in values.items()},
            attrs={"stages_schema": SCHEMA, "measurement": "part"},
        )
        netcdf.save(part, self.parts / f"{rows.start:012}.nc")

    def finish(self, **more: Any) -> None:
        """Put the parts together, with further attributes, and remove them."""
        if not self.parts.is_dir():
            return
        self._check(self._frame.sizes["sequence"])
        self._frame.attrs |= more
        write_whole(self.path, self._join)
        _remove_parts(self._run)

    def _dims_of(self, name: str) -> tuple[str, ...]:
        clean = name.removeprefix(PREFIX).startswith("clean_")
        return ("token", "sequence") if clean else (*self._dims, "token", "sequence")

    def _join(self, path: Path) -> None:
        self._frame.to_netcdf(path, engine="netcdf4")
        with netCDF4.Dataset(path, "a") as file:
            for metric in self._metrics:
                dims = self._dims_of(PREFIX + metric.name)[:-2]
                _create(file, metric, (*dims, "sequence", "token"), self._kind)
            for part in self._there():
                values, start = netcdf.load_part(part), int(part.stem)
                for name, value in values.items():
                    rows = slice(start, start + value.shape[-1])
                    file[str(name).removeprefix(PREFIX)][..., rows, :] = np.moveaxis(
                        value.values, -1, -2
                    )


def remove(path: Path) -> None:
    """Remove the tokens of a file that was made anew without them, and their parts."""
    ownership.remove(beside(path), ownership.kind_of({"measurement": "sweep"}, ("token",)))
    with suppress(Unwritable):  # what is not ours stays
        _finish_removing(path)
        _remove_parts(path)


def _remove_parts(path: Path) -> None:
    """Remove the parts at once: what is left of them must never be taken for all."""
    if _parts(path).is_dir():
        ownership.check_directory(_parts(path), PART)
        _parts(path).rename(_removed(path))
        _finish_removing(path)


def _finish_removing(path: Path) -> None:
    ownership.remove_directory(_removed(path), PART)


def _removed(path: Path) -> Path:
    return _parts(path).with_name(f".{_parts(path).name}.removed")


def check_there(shards: Sequence[Path]) -> None:
    """Refuse shards whose tokens are not beside them."""
    for shard in shards:
        if not beside(shard).exists():
            raise Refusal(
                f"{beside(shard)} is not there: run the command of {shard} again with `fresh`"
            )


def merge(shards: Sequence[Path], path: Path, blank: xr.Dataset) -> None:
    """Put the files of the tokens of shards together, a few sequences at a time.

    Parameters
    ----------
    shards : sequence of path
        The files of the shards, in order.
    path : path
        The file of the whole.
    blank : Dataset
        The coordinates and attributes of the whole.
    """
    files = list(map(beside, shards))
    remove_leftovers(beside(path))

    def join(temporary: Path) -> None:
        with ExitStack() as stack:
            parts = [stack.enter_context(netcdf.opened(file, whole=False)) for file in files]
            _check_parts(files, parts, blank)
            for part in parts:
                part.set_auto_mask(False)
            kinds = {name: parts[0][name] for name in parts[0].variables if name in METRICS}
            dims = next(each.dimensions for each in kinds.values() if len(each.dimensions) > 2)
            known = {name: np.concatenate([part[name][:] for part in parts]) for name in KNOWN}
            _frame(blank, dims[:-2], known).to_netcdf(temporary, engine="netcdf4")
            whole = stack.enter_context(netCDF4.Dataset(temporary, "a"))
            for name, variable in kinds.items():
                _create(whole, METRICS[name], variable.dimensions, variable.dtype)
            begin = 0
            for part in parts:
                count = len(part.dimensions["sequence"])
                for first in range(0, count, SEQUENCES_COPIED):
                    rows = slice(first, min(first + SEQUENCES_COPIED, count))
                    there = slice(begin + rows.start, begin + rows.stop)
                    for name in kinds:
                        whole[name][..., there, :] = part[name][..., rows, :]
                begin += count

    write_whole(beside(path), join)


def _check_parts(files: Sequence[Path], parts: Sequence[Any], blank: xr.Dataset) -> None:
    """Refuse files of tokens that are not of the shards beside them, in order."""
    names = {name: each for name, each in parts[0].variables.items() if name in METRICS}
    begin = 0
    for index, (file, part) in enumerate(zip(files, parts, strict=True), 1):
        with reading(str(file), f"run the command of shard {index} again with `fresh`"):
            end = begin + len(part.dimensions["sequence"])
            ours = (f"{index}/{len(files)}", blank.attrs["corpus_sha256"], blank.attrs["model"])
            theirs = tuple(part.getncattr(name) for name in ("shard", "corpus_sha256", "model"))
            kinds = {name: (part[name].dtype, part[name].dimensions) for name in names}
            if (
                ours != theirs
                or not np.array_equal(part["sequence"][:], blank["sequence"].values[begin:end])
                or not np.array_equal(part["document"][:], blank["document"].values[begin:end])
                or len(part.dimensions["token"]) != len(parts[0].dimensions["token"])
                or kinds != {name: (each.dtype, each.dimensions) for name, each in names.items()}
            ):
                raise ValueError(f"it is not of shard {index} of the run")
            begin = end


def _counting(corpus: Corpus) -> dict[str, NDArray[Any]]:
    """Return which positions count for what, of all in the windows."""
    found = query_positions(corpus, slice(0, len(corpus.tokens)), torch.from_numpy(corpus.tokens))
    whole = {}
    for name in ("compared", "predicted"):
        whole[name] = np.zeros(corpus.tokens.shape, np.int8)
        whole[name][:, found["first"] : found["last"]] = found[name].numpy()
    return whole


def _frame(blank: xr.Dataset, dims: Sequence[str], known: Mapping[str, NDArray[Any]]) -> xr.Dataset:
    """Return the file of a run's tokens without readouts."""
    kept = [name for name in blank.coords if name in (*dims, "relative_depth", "schedule")]
    size = known["token_id"].shape[1]
    return xr.Dataset(
        {
            name: (
                ("sequence", "token"),
                known[name].astype(np.int32 if name == "token_id" else np.int8),
                {"units": "1", "long_name": text},
                {"zlib": True},  # ids as they are can look like links to other files
            )
            for name, text in KNOWN.items()
        },
        coords={
            **{name: blank[name] for name in (*kept, "sequence", "document")},
            "token": ("token", np.arange(size), {"long_name": "query position"}),
        },
        attrs={**blank.attrs, "conventions": "information in nats; KL(clean || intervened)"},
    )


def _create(file: netCDF4.Dataset, metric: Metric, dims: Sequence[str], kind: Any) -> None:
    """Add a readout, in chunks of one sequence each."""
    sizes = [len(file.dimensions[dim]) for dim in dims]
    variable = file.createVariable(
        metric.name,
        kind,
        dims,
        zlib=True,
        fill_value=np.nan,
        chunksizes=(*sizes[:-2], 1, sizes[-1]),
    )
    variable.setncatts(metric.attrs)
