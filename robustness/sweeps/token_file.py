"""Values of single tokens of a run: saved batch by batch, and joined on disk after the last.

The values of a long run do not fit into memory. Each batch saves a part of its own, written whole
like any file. A run that resumes after an interruption writes the parts of repeated batches again.
The file is then filled part by part, so that memory holds one part at a time.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal, Unwritable
from robustness.files import netcdf, output, ownership
from robustness.files.atomic import remove_leftovers, write_whole
from robustness.files.labels import Labels
from robustness.files.metrics import Metric
from robustness.sweeps import token_layout
from robustness.sweeps.token_layout import beside
from robustness.sweeps.token_parts import TokenParts
from robustness.text.corpus import Corpus

PREFIX = "token_"
"""Prefix of the readouts of single tokens among the values of a batch."""


def spread(
    measured: Mapping[str, NDArray[Any]], labels: Labels, first: int, context: int
) -> dict[str, NDArray[Any]]:
    """Lay out the readouts of single tokens of a batch over all positions of a window.

    Parameters
    ----------
    measured : mapping of str to array
        Values of every readout `token_NAME` (schedule, sequence, query); readouts of the clean run
        have no schedule.
    labels : Labels
        Layout of the schedules.
    first : int
        Position of the first query.
    context : int
        Number of tokens in a window.

    Returns
    -------
    dict of str to array
        Values (…, token, sequence), NaN at positions that do not count.
    """
    windows = {}
    for name, values in measured.items():
        queries = values if values.ndim == 2 else labels.spread(values)
        window = np.full((*queries.shape[:-1], context), np.nan, queries.dtype)
        window[..., first : first + queries.shape[-1]] = queries
        # Sequences come last among the values of a batch, so that batches are joined along the
        # same axis as numbers of sequences.
        windows[name] = np.moveaxis(window, -1, -2)
    return windows


class TokenFile:
    """File of the single tokens of a run, and its parts until it is complete.

    Parameters
    ----------
    path : path
        Path of the run's file.
    blank : Dataset
        Coordinates, settings and provenance of the run.
    corpus : Corpus
        Text that is measured.
    metrics : sequence of Metric
        Readouts that are saved for every token.
    dims : tuple of str
        Dimensions that tell schedules apart.
    kind : dtype
        Type of the numbers.
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
        self._parts = TokenParts(path)
        self._run, self._starts_anew = path, True
        self._metrics, self._dims, self._dtype = metrics, dims, kind
        self._frame = token_layout.frame(blank, dims, token_layout.columns_of(corpus))

    def begin(self, done: int, finished: bool) -> None:
        """Refuse to resume a run whose tokens are missing.

        Parameters
        ----------
        done : int
            Number of sequences that the run has measured already.
        finished : bool
            Whether these are all.
        """
        ownership.check(self.path, ownership.kind_of(self._frame.attrs, self._frame.sizes))
        remove_leftovers(self.path)
        self._parts.check()
        # Of a finished run the parts may be gone: they are removed once the file is complete.
        saved = self._parts.exist() or (finished and self.path.exists())
        if done and not saved:
            raise Refusal(f"{self.path} is not there, or its parts: measure anew with `fresh`")
        self._starts_anew = not done
        if done and self._parts.exist():
            self._parts.check_complete(done)
            # Batches after these are repeated, and may begin with other sequences then.
            self._parts.remove_from(done)

    def add(self, rows: slice, values: Mapping[str, NDArray[Any]]) -> None:
        """Save the values (…, token, sequence) of a batch of sequences."""
        if self._starts_anew:
            # An earlier unfinished run could not be resumed without its parts: it goes first.
            kind = ownership.kind_of(self._frame.attrs)
            ownership.remove(output.partial_path(self._run), kind)
            self._parts.remove()
            self._starts_anew = False
        variables = {name: (self._dims_of(name), value) for name, value in values.items()}
        self._parts.add(rows.start, variables)

    def finish(self, **more: Any) -> None:
        """Join the parts into the file, with further attributes, and remove them."""
        if not self._parts.exist():
            return
        self._parts.check_complete(self._frame.sizes["sequence"])
        self._frame.attrs |= more
        write_whole(self.path, self._join)
        self._parts.remove()

    def _dims_of(self, name: str) -> tuple[str, ...]:
        """Return the dimensions of a readout as a batch yields it."""
        clean = name.removeprefix(PREFIX).startswith("clean_")
        return ("token", "sequence") if clean else (*self._dims, "token", "sequence")

    def _join(self, path: Path) -> None:
        """Write the file from its parts, one at a time."""
        self._frame.to_netcdf(path, engine="netcdf4")
        # xarray cannot fill a variable piece by piece; netCDF4 can.
        with netCDF4.Dataset(path, "a") as file:
            for metric in self._metrics:
                *dims, _, _ = self._dims_of(PREFIX + metric.name)
                token_layout.create_readout(file, metric, (*dims, "sequence", "token"), self._dtype)
            for part in self._parts.files():
                values, start = netcdf.load_part(part), int(part.stem)
                for name, value in values.items():
                    rows = slice(start, start + value.shape[-1])
                    readout = file[str(name).removeprefix(PREFIX)]
                    readout[..., rows, :] = np.moveaxis(value.values, -1, -2)


def remove(path: Path) -> None:
    """Remove the tokens of a run's file that was measured anew without them, and their parts."""
    ownership.remove(beside(path), ownership.kind_of({"measurement": "sweep"}, ("token",)))
    parts = TokenParts(path)
    # A directory with files of others stays: the run does not need its place.
    with suppress(Unwritable):
        parts.finish_removal()
        parts.remove()
