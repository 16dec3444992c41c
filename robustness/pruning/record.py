"""Record of what a search has measured: candidates by sequences, in memory and on the disk."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import OtherSettings, reading
from robustness.files import changes, netcdf
from robustness.files.damage import REMEDY
from robustness.files.kinds.searches import READ
from robustness.files.matching import REPLACED, check_beginning
from robustness.files.output import Output
from robustness.files.precision_floor import floor_attributes
from robustness.schedules import Schedule, check, to_text
from robustness.schedules.steps import maps as maps_of

CLEAN_LOSS = "clean_loss"

SOUGHT = (
    "units",
    "target",
    "objective",
    "methods",
    "layers",
    "level",
    "beam",
    "finalists",
    "heal",
    "measured_from",
)
"""Names of attributes that say what a search looks for, and how."""


class Record:
    """Values of candidates on the batches of a text, and the file that keeps them.

    Measuring is asked for batch by batch, always in the same order, so what is on the disk is how
    far a search was when it was killed: the same search asks again, and goes on from there.

    Parameters
    ----------
    blank : Dataset
        Dataset without candidates: coordinates of sequences, `clean_loss`, and all attributes.
    batches : sequence of slice
        Sequences of every batch.
    output : Output
        Place of the file.
    layers : int
        Number of blocks of the model.

    Attributes
    ----------
    attrs : dict
        Attributes of the file.
    values : dict of str to array
        Readouts (candidate, sequence), NaN where nothing is measured; rows beyond the candidates
        are free.
    """

    def __init__(
        self, blank: xr.Dataset, batches: Sequence[slice], output: Output, layers: int
    ) -> None:
        self.blank, self.batches, self.output = blank, batches, output
        self.attrs = dict(blank.attrs)
        self.clean_loss: NDArray[np.floating] = blank[CLEAN_LOSS].values.copy()
        self._layers = layers
        self._index: dict[Schedule, int] = {}
        self._measured = np.zeros((0, len(batches)), bool)
        self.values = {metric.name: self._empty(0) for metric in READ}
        self._requests = 0

    @property
    def candidates(self) -> list[Schedule]:
        """Candidates in the order in which they were first measured."""
        return list(self._index)

    @property
    def measured(self) -> NDArray[np.bool_]:
        """Whether each candidate is measured on each batch (candidate, batch)."""
        return self._measured[: len(self._index)]

    def missing(self, candidates: Sequence[Schedule], batch: int) -> list[Schedule]:
        """Return the candidates that are not measured on a batch yet."""
        lacking = []
        for candidate in candidates:
            index = self._index.get(candidate)
            if index is None or not self._measured[index, batch]:
                lacking.append(candidate)
        return lacking

    def add(
        self,
        candidates: Sequence[Schedule],
        batch: int,
        values: Mapping[str, NDArray[np.floating]],
    ) -> None:
        """Add what some candidates yielded on a batch, (candidate, sequence) each, and save it."""
        self.take(candidates, [batch], values)
        self.clean_loss[self.batches[batch]] = values[CLEAN_LOSS]
        self._requests += 1
        if self.output.is_due:
            self.save()

    def take(
        self,
        candidates: Sequence[Schedule],
        batches: Sequence[int],
        values: Mapping[str, NDArray[np.floating]],
    ) -> None:
        """Take values (candidate, sequence) of the sequences of some batches."""
        index = [self._index.setdefault(candidate, len(self._index)) for candidate in candidates]
        self._grow(len(self._index))
        rows = np.concatenate([np.arange(*self.batches[b].indices(2**62)) for b in batches])
        for metric in READ:
            self.values[metric.name][np.ix_(np.array(index), rows)] = values[metric.name]
        self._measured[np.ix_(np.array(index), np.array(batches))] = True

    def scores(
        self, candidates: Sequence[Schedule], rows: slice, objective: str
    ) -> NDArray[np.float64]:
        """Return the scores of candidates on some sequences, (candidate, sequence), in nats.

        Where a prediction was not finite, the score is infinite.
        """
        index = [self._index[candidate] for candidate in candidates]
        values = self.values[objective][index, rows].astype(np.float64)
        if objective == "loss":
            values = values - self.clean_loss[rows]
        return np.where(np.isfinite(values), values, np.inf)

    def dataset(self) -> xr.Dataset:
        """Return all that is measured so far."""
        count = len(self._index)
        found = self.blank.assign_attrs(self.attrs)
        found[CLEAN_LOSS] = ("sequence", self.clean_loss, self.blank[CLEAN_LOSS].attrs)
        texts = np.array([to_text(candidate) for candidate in self._index], dtype=object)
        found = found.assign_coords(candidate=texts, batch=np.arange(len(self.batches)))
        for metric in READ:
            values = self.values[metric.name][:count]
            found[metric.name] = (("candidate", "sequence"), values, metric.attrs)
        described = {"units": "1", "long_name": "whether it is measured on the batch"}
        measured = self.measured.astype(np.int32)
        return found.assign(measured=(("candidate", "batch"), measured, described))

    def save(self) -> None:
        """Save what is measured so far."""
        if self.output.partial is not None and self._requests:
            attrs = {"requests_done": self._requests}
            self.output.keep(self.dataset().assign_attrs(attrs))

    def resume(self) -> xr.Dataset | None:
        """Take over what an earlier call with equal settings measured.

        Returns
        -------
        Dataset or None
            The finished dataset, if the earlier call ended.

        Raises
        ------
        Refusal
            If the file is of another search.
        """
        file = self.output.earlier()
        if file is None:
            return None
        finished = file == self.output.path
        with reading(str(file), REPLACED):
            earlier = netcdf.load(file)
            if not finished:
                # What is measured does not depend on what is looked for.
                sought = {name: self.blank.attrs.get(name) for name in SOUGHT}
                earlier.attrs = _given({**earlier.attrs, **sought})
            try:
                check_beginning(file, earlier, self.blank, finished=finished, further=False)
            except OtherSettings as error:
                raise OtherSettings(f"{error}; `measured` takes its numbers over") from error
        if finished:
            return earlier
        with reading(str(file), REMEDY):
            self._take_over(earlier)
        return None

    def _take_over(self, earlier: xr.Dataset) -> None:
        self._requests = int(earlier.attrs.pop("requests_done"))
        carried = changes.carried(earlier.attrs, self.attrs, 0)
        self.attrs |= carried | floor_attributes(earlier.attrs)
        self.clean_loss = earlier[CLEAN_LOSS].values.astype(self.clean_loss.dtype)
        schedules, kept = [], []
        for index, text in enumerate(earlier["candidate"].values):
            schedule = check(str(text), self._layers)
            # Maps are fitted again, perhaps in the place of other blocks.
            if not any(map(maps_of, schedule)):
                schedules.append(schedule)
                kept.append(index)
        earlier = earlier.isel(candidate=kept)
        measured = earlier["measured"].transpose("candidate", "batch").values == 1
        if measured.shape != (len(set(schedules)), len(self.batches)):
            raise ValueError("candidates or batches are not those of this search")
        values = {}
        for metric in READ:
            values[metric.name] = earlier[metric.name].transpose("candidate", "sequence").values
        self.take(schedules, range(len(self.batches)), values)
        self._measured = measured

    def _empty(self, count: int) -> NDArray[np.floating]:
        shape = (count, self.blank.sizes["sequence"])
        return np.full(shape, np.nan, self.blank[CLEAN_LOSS].dtype)

    def _grow(self, count: int) -> None:
        """Make room for candidates, twice as many as there were, so that few copies are made."""
        room = len(self._measured)
        if count <= room:
            return
        more = max(count, 2 * room) - room
        for name, values in self.values.items():
            self.values[name] = np.concatenate([values, self._empty(more)])
        added = np.zeros((more, len(self.batches)), bool)
        self._measured = np.concatenate([self._measured, added])


def _given(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that have a value."""
    return {name: value for name, value in attrs.items() if value is not None}
