"""Values of single tokens: kept batch by batch, and put together on disk when all are there.

Of a long run they do not fit into memory. Each batch leaves a part of its own, written whole like
any file; the run that goes on after an interruption writes those again that it runs again. The file
is then filled part by part, so that no more than one is held at a time.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness import results
from robustness.corpus import Corpus
from robustness.metrics import Metric
from robustness.refusal import Refusal

PREFIX = "token_"
"""Of what is measured of single tokens, among what a batch yields."""


def beside(path: Path) -> Path:
    """Return where the tokens of a file's sequences are."""
    return path.with_name(f"{path.stem}.tokens{path.suffix}")


def spread(
    measured: Mapping[str, NDArray[Any]],
    labels: results.Labels,
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


class Tokens:
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
        self.parts = self.path.with_name(f"{self.path.stem}.parts")
        self._metrics, self._dims, self._kind = metrics, dims, kind
        kept = [name for name in blank.coords if name in (*dims, "relative_depth", "schedule")]
        self._frame = xr.Dataset(
            {"token_id": (("sequence", "token"), corpus.tokens.astype(np.int32))},
            coords={
                **{name: blank[name] for name in (*kept, "sequence", "document")},
                "token": ("token", np.arange(corpus.context), {"long_name": "query position"}),
            },
            attrs={**blank.attrs, "conventions": "information in nats; KL(clean || intervened)"},
        )
        self._frame["token_id"].attrs = {"units": "1", "long_name": "token at the query position"}

    def begin(self, done: int, finished: bool) -> None:
        """Refuse to go on from a run whose tokens are not there.

        Parameters
        ----------
        done : int
            Sequences that the run goes on from.
        finished : bool
            Whether all of it is done.
        """
        there = self.parts.is_dir() or (finished and self.path.exists())
        if done and not there:
            raise Refusal(f"{self.path} is not there, or its parts: measure anew with --fresh")
        if not done:
            shutil.rmtree(self.parts, ignore_errors=True)

    def add(self, rows: slice, values: Mapping[str, NDArray[Any]]) -> None:
        """Keep what a batch of sequences yielded, (…, token, sequence)."""
        part = xr.Dataset({name: (self._dims_of(name), value) for name, value in values.items()})
        results.save(part, self.parts / f"{rows.start:012}.nc")

    def finish(self) -> None:
        """Put the parts together, and remove them."""
        if self.parts.is_dir():
            results.write_whole(self.path, self._join)
            shutil.rmtree(self.parts)

    def _dims_of(self, name: str) -> tuple[str, ...]:
        clean = name.removeprefix(PREFIX).startswith("clean_")
        return ("token", "sequence") if clean else (*self._dims, "token", "sequence")

    def _join(self, path: Path) -> None:
        self._frame.to_netcdf(path, engine="netcdf4")
        with netCDF4.Dataset(path, "a") as file:
            for metric in self._metrics:
                dims = self._dims_of(PREFIX + metric.name)
                sizes = [len(file.dimensions[dim]) for dim in dims[:-2]]
                variable = file.createVariable(
                    metric.name,
                    self._kind,
                    (*dims[:-2], "sequence", "token"),
                    zlib=True,
                    fill_value=np.nan,
                    chunksizes=(*sizes, 1, len(file.dimensions["token"])),
                )
                variable.setncatts(metric.attrs)
            for part in sorted(self.parts.glob("*.nc")):
                values, start = results.load_part(part), int(part.stem)
                for name, value in values.items():
                    rows = slice(start, start + value.shape[-1])
                    file[str(name).removeprefix(PREFIX)][..., rows, :] = np.moveaxis(
                        value.values, -1, -2
                    )
