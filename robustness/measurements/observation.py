"""Observation of the clean run: measurements at every depth, which share one pass per batch."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from robustness.errors import Refusal, reading
from robustness.files import changes, resumable
from robustness.measurements.clean_pass import (
    measure_batch,
    needs_of,
    outputs_of,
    predicts,
    trace_parts,
)
from robustness.measurements.layout import Layout, group_size
from robustness.measurements.measurement import MEASUREMENTS, Measurement
from robustness.measurements.requirements import check_measurement, choose
from robustness.models.block_structure import examine
from robustness.models.model import Model
from robustness.runs import remote_traffic
from robustness.runs.batching import check_corpus, rest, tokens_of_text
from robustness.runs.out_of_memory import Portions
from robustness.runs.settings import RunOptions
from robustness.text.corpus import Corpus

LESS_TRAFFIC = "fewer `tokens` or fewer measurements (lens is the most expensive)"
"""What to ask for so that less passes through the socket of a sandboxed server."""


def observe(
    model: Model,
    corpus: Corpus,
    measurements: Sequence[str | Measurement] = tuple(MEASUREMENTS),
    options: RunOptions | None = None,
) -> dict[str, xr.Dataset]:
    """Measure the clean run at every depth; all measurements share one pass per batch.

    Parameters
    ----------
    model : Model
        An opened model.
    corpus : Corpus
        Token sequences.
    measurements : sequence of str or Measurement
        Names in `MEASUREMENTS`, or measurements of one's own.
    options : RunOptions, optional
        `out` is a directory, in which a file per measurement is saved, `lens.nc` and so on.
        Sequences in a trace are a power of two. `state_cap` does not matter here.

    Returns
    -------
    dict of str to Dataset
        Datasets by the measurement's name.

    Raises
    ------
    Refusal
        If there is no such measurement, the model or the corpus does not fit it, or `out` holds a
        run of other settings.
    """
    options = options or RunOptions()
    chosen = choose(measurements)
    check_corpus(model, corpus)
    structure = examine(model, needs_of(chosen))
    for measurement in chosen:
        check_measurement(measurement, corpus, structure)
    group = group_size(len(corpus.tokens))
    batch_tokens = options.batch_tokens or tokens_of_text(model)
    layout = Layout(model, structure, corpus, group, batch_tokens, options.command)
    with ExitStack() as stack:
        recordings = []
        for measurement in chosen:
            run = _begin(measurement, layout, options)
            recordings.append(_Recording(measurement, stack.enter_context(run), group))
        _fill(layout, recordings, options)
        return {each.measurement.name: each.run.finish() for each in recordings}


def _begin(measurement: Measurement, layout: Layout, options: RunOptions) -> resumable.Run:
    """Begin the run of a measurement, or go on from what an earlier call left."""
    return resumable.Run(
        layout.blank(measurement),
        path=None if options.out is None else options.out / f"{measurement.name}.nc",
        fresh=options.fresh,
        complete=lambda dataset, _: measurement.complete(dataset),
    )


@dataclass(eq=False)
class _Recording:
    """A measurement, the run that it fills, and what waits to be reduced together."""

    measurement: Measurement
    run: resumable.Run
    group: int
    waiting: list[Tensor] = field(default_factory=list)

    def is_due(self, rows: slice, total: int) -> bool:
        """Whether some sequences are still to be measured."""
        if rows.start < self.run.done:
            return False
        # Sequences that do not fill the last group are left out.
        return not self.measurement.grouped or rows.stop <= total // self.group * self.group

    def outputs(self, rows: slice) -> Any:
        """Return the shapes of what some sequences give, where the dataset tells them."""
        if self.measurement.grouped:
            return None
        return outputs_of(self.run.dataset, rows.stop - rows.start)

    def add(self, rows: slice, taken: Mapping[str, Tensor], layout: Layout) -> None:
        """Record what some sequences gave."""
        if self.measurement.grouped is None:
            _check_names(self.measurement.name, taken, self.run.dataset)
            self.run.add(rows, {name: tensor.numpy() for name, tensor in taken.items()})
            return
        self.waiting.extend(taken.values())
        if rows.stop % self.group == 0:
            self._reduce(rows.stop, layout)

    def _reduce(self, stop: int, layout: Layout) -> None:
        """Reduce a whole group of sequences, of which `stop` is one past the last."""
        assert self.measurement.grouped is not None
        # What a server sends for a user's own measurement may be of any shape.
        with _checking_answer(layout.model):
            value = self.measurement.grouped(torch.cat(self.waiting, -1), layout.structure)
        self.waiting.clear()
        _check_shape(self.measurement.name, value, self.run.dataset)
        values = {metric.name: value[..., None] for metric in self.measurement.variables}
        place = slice(stop // self.group - 1, stop // self.group)
        self.run.add(slice(stop - self.group, stop), values, place)


def _fill(layout: Layout, recordings: Sequence[_Recording], options: RunOptions) -> None:
    """Measure batch by batch what the runs lack."""
    model, corpus = layout.model, layout.corpus
    total = len(corpus.tokens)
    measurements = [each.measurement for each in recordings]
    begin = min(each.run.done for each in recordings)
    size = _batch_size(layout)
    crossings = _crossings(model, corpus, measurements, begin, size)
    remote_traffic.allow(model, crossings, LESS_TRAFFIC)
    portions = _portions(recordings, options)
    matrix = None
    if begin < total and predicts(measurements):
        matrix = portions.matrix(model.unembedding, begin)
    parts = trace_parts(model, layout.structure, matrix)

    def measure(due: list[_Recording], rows: slice, _: int | None) -> list[dict[str, Tensor]]:
        wanted = [each.outputs(rows) for each in due]
        return measure_batch(model, corpus, rows, [each.measurement for each in due], parts, wanted)

    whole = [slice(start, min(start + size, total)) for start in range(0, total, size)]
    for rows in rest(whole, [each.run.done for each in recordings]):
        options.show(rows.start, total)
        due = [each for each in recordings if each.is_due(rows, total)]
        if not due:
            continue
        for portion, taken in portions.each(rows, partial(measure, due), partial(_tokens, corpus)):
            for recording, tensors in zip(due, taken, strict=True):
                recording.add(portion, tensors, layout)
    options.show(total, total)


def _batch_size(layout: Layout) -> int:
    """Return how many sequences a trace has: a power of two, which divides every group."""
    fitting = layout.batch_tokens // layout.corpus.context
    return int(min(layout.group, 2 ** max(0, fitting.bit_length() - 1)))


def _portions(recordings: Sequence[_Recording], options: RunOptions) -> Portions:
    """Return how much is run at once, as low as unfinished runs have recorded it."""
    unfinished = [each.run for each in recordings if not each.run.finished]

    def record(sequence: int, text: str) -> None:
        for run in unfinished:
            run.lost(max(sequence, run.done), text)

    portions = Portions(record, options.tell)
    for run in unfinished:
        portions.begin(changes.lowered(run.dataset.attrs))
    return portions


def _tokens(corpus: Corpus, rows: slice) -> int:
    """Return how many tokens some sequences have when they are filled up."""
    return (rows.stop - rows.start) * int(corpus.lengths[rows].max())


def _crossings(
    model: Model, corpus: Corpus, measurements: Sequence[Measurement], begin: int, size: int
) -> list[remote_traffic.Crossing]:
    """Estimate the traffic of the requests that are left, from a sequence on."""
    needs, lens = needs_of(measurements), predicts(measurements)
    crossings = []
    for start in range(begin, len(corpus.tokens), size):
        width = _tokens(corpus, slice(start, min(start + size, len(corpus.tokens))))
        predicted = remote_traffic.of_lens(model, width) if lens else 0
        crossings.append(remote_traffic.of_walk(model, needs, width, predicted))
    return crossings


def _checking_answer(model: Model) -> AbstractContextManager[None]:
    """Refuse what comes from a server and cannot be worked with."""
    if not model.request:
        return nullcontext()
    return reading("what the server answers", "give the same command again, or another `host`")


def _check_names(name: str, taken: Mapping[str, Tensor], dataset: xr.Dataset) -> None:
    """Refuse tensors that are not the variables of a measurement."""
    if taken.keys() != set(dataset):
        raise Refusal(
            f"{name} gives {', '.join(sorted(taken)) or 'nothing'}; its variables are "
            f"{', '.join(sorted(map(str, dataset)))}"
        )


def _check_shape(name: str, value: NDArray[Any], dataset: xr.Dataset) -> None:
    """Refuse an array that does not have the shape of a measurement's variables."""
    for variable in dataset.data_vars.values():
        if value.shape != variable.shape[:-1]:
            raise Refusal(f"{name} gives {value.shape}; its variable is {variable.shape[:-1]}")
