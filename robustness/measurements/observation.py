"""Measurements of the clean run at every depth, which share one pass per batch."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
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
from robustness.runs import remote_traffic, request_cost, server_sizes, sizes
from robustness.runs.announcement import announce
from robustness.runs.batching import check_corpus, rest
from robustness.runs.budget import pace_of
from robustness.runs.foresight import Foresight
from robustness.runs.portions import Piece, Portions, Work
from robustness.runs.request_cost import RequestCost, Text
from robustness.runs.settings import RunOptions
from robustness.text.corpus import Corpus

LESS_TRAFFIC = "fewer `tokens` or fewer measurements"
"""Advice for less traffic through the socket of a sandboxed server."""


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
        `out` is the directory for a file per measurement, `lens.nc` and so on. The number of
        sequences in a trace is a power of two. `state_cap` has no influence.

    Returns
    -------
    dict of str to Dataset
        Datasets by the name of the measurement.

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
    layout = Layout(model, structure, corpus, group, options.batch_tokens or 0, options.command)
    if options.batch_tokens is None:
        layout = replace(layout, batch_tokens=_usual_tokens(layout, chosen))
    with ExitStack() as stack:
        recordings = []
        for measurement in chosen:
            run = _begin(measurement, layout, options)
            recordings.append(_Recording(measurement, stack.enter_context(run), group))
        _fill(layout, recordings, options)
        datasets = {}
        for recording in recordings:
            datasets[recording.measurement.name] = recording.run.finish()
        return datasets


def _usual_tokens(layout: Layout, measurements: Sequence[Measurement]) -> int:
    """Return the tokens of text in a trace that suit some measurements."""
    model, context = layout.model, layout.corpus.context
    if not model.request:
        return sizes.of_clean_run(model, context)
    numbers = sum(layout.numbers(measurement) for measurement in measurements)
    predicted = _predicted(model, measurements, context)
    return server_sizes.of_clean_run(model, needs_of(measurements), context, predicted, numbers)


def _begin(measurement: Measurement, layout: Layout, options: RunOptions) -> resumable.Run:
    """Begin the run of a measurement, or resume an earlier one."""
    return resumable.Run(
        layout.blank(measurement),
        path=None if options.out is None else options.out / f"{measurement.name}.nc",
        fresh=options.fresh,
        complete=lambda dataset, _: measurement.complete(dataset),
    )


@dataclass(eq=False)
class _Recording:
    """A measurement, the run that it fills, and the tensors that wait for their group."""

    measurement: Measurement
    run: resumable.Run
    group: int
    """Number of sequences that are reduced together."""
    waiting: list[Tensor] = field(default_factory=list)
    """Tensors of sequences whose group is not complete yet."""

    def is_due(self, rows: slice, total: int) -> bool:
        """Whether some sequences are still to be measured."""
        if rows.start < self.run.done:
            return False
        # An incomplete last group is left out: means over groups count all alike.
        return not self.measurement.grouped or rows.stop <= total // self.group * self.group

    def outputs(self, rows: slice) -> Any:
        """Return the shapes of the tensors of some sequences, if the dataset determines them."""
        if self.measurement.grouped:
            return None
        return outputs_of(self.run.dataset, rows.stop - rows.start)

    def add(self, rows: slice, taken: Mapping[str, Tensor], layout: Layout) -> None:
        """Record the tensors of some sequences."""
        if self.measurement.grouped is None:
            _check_names(self.measurement.name, taken, self.run.dataset)
            self.run.add(rows, {name: tensor.numpy() for name, tensor in taken.items()})
            return
        self.waiting.extend(taken.values())
        if rows.stop % self.group == 0:
            self._reduce(rows.stop, layout)

    def _reduce(self, stop: int, layout: Layout) -> None:
        """Reduce a complete group of sequences, whose last one is before `stop`."""
        assert self.measurement.grouped is not None
        # A server may send tensors of any shape for a user's own measurement.
        with _checking_answer(layout.model):
            value = self.measurement.grouped(torch.cat(self.waiting, -1), layout.structure)
        self.waiting.clear()
        _check_shape(self.measurement.name, value, self.run.dataset)
        values = {metric.name: value[..., None] for metric in self.measurement.variables}
        place = slice(stop // self.group - 1, stop // self.group)
        self.run.add(slice(stop - self.group, stop), values, place)


def _fill(layout: Layout, recordings: Sequence[_Recording], options: RunOptions) -> None:
    """Measure the sequences that the runs lack, batch by batch."""
    model, corpus = layout.model, layout.corpus
    total = len(corpus.tokens)
    measurements = [recording.measurement for recording in recordings]
    done = [recording.run.done for recording in recordings]
    begin = min(done)
    size = _batch_size(layout)
    announce(_foresee(layout, recordings, begin, size), options, LESS_TRAFFIC)
    portions = _portions(recordings, options, model)
    matrix = None
    if begin < total and predicts(measurements):
        matrix = portions.matrix(model.unembedding, begin)
    parts = trace_parts(model, layout.structure, matrix)

    def measure(due: list[_Recording], piece: Piece) -> list[dict[str, Tensor]]:
        wanted = [recording.outputs(piece.rows) for recording in due]
        of_due = [recording.measurement for recording in due]
        return measure_batch(model, corpus, piece.rows, of_due, parts, wanted)

    def describe(piece: Piece) -> str:
        return request_cost.describe(_cost(layout, recordings, piece.rows))

    # Batches are composed as in a run from the start: numbers must not depend on where it resumes.
    whole = [slice(start, min(start + size, total)) for start in range(0, total, size)]
    for rows in rest(whole, done):
        options.show(rows.start, total)
        due = [recording for recording in recordings if recording.is_due(rows, total)]
        if not due:
            continue
        work = Work(partial(measure, due), partial(_tokens, corpus), describe=describe)
        for portion, (taken,) in portions.each(rows, work):
            for recording, tensors in zip(due, taken, strict=True):
                recording.add(portion, tensors, layout)
    options.show(total, total)


def _batch_size(layout: Layout) -> int:
    """Return the number of sequences in a trace: a power of two, which divides every group."""
    fitting = layout.batch_tokens // layout.corpus.context
    return int(min(layout.group, 2 ** max(0, fitting.bit_length() - 1)))


def _portions(recordings: Sequence[_Recording], options: RunOptions, model: Model) -> Portions:
    """Return the portions of a batch that fit into memory, starting from those of earlier runs."""
    unfinished = [recording.run for recording in recordings if not recording.run.finished]

    def record(sequence: int, text: str, lacking: str) -> None:
        for run in unfinished:
            run.lost(max(sequence, run.done), text, lacking)

    portions = Portions(record, options.tell, pace=pace_of(model, options.tell))
    for run in unfinished:
        portions.begin(changes.lowered(run.dataset.attrs))
    return portions


def _tokens(corpus: Corpus, rows: slice) -> int:
    """Return the number of tokens of some sequences, with padding."""
    return (rows.stop - rows.start) * int(corpus.lengths[rows].max())


def _foresee(layout: Layout, recordings: Sequence[_Recording], begin: int, size: int) -> Foresight:
    """Return what is left to do, from a sequence on."""
    model, corpus = layout.model, layout.corpus
    measurements = [recording.measurement for recording in recordings]
    needs = needs_of(measurements)
    costs, crossings = [], []
    for start in range(begin, len(corpus.tokens), size):
        rows = slice(start, min(start + size, len(corpus.tokens)))
        tokens = _tokens(corpus, rows)
        predicted = _predicted(model, measurements, tokens)
        costs.append(_cost(layout, recordings, rows))
        crossings.append(remote_traffic.of_walk(model, needs, tokens, predicted))
    read = int(corpus.lengths[begin:].sum())
    return Foresight(model, len(corpus.tokens) - begin, read, costs, crossings)


def _cost(layout: Layout, recordings: Sequence[_Recording], rows: slice) -> RequestCost:
    """Return what a trace takes that measures some sequences."""
    model, measurements = layout.model, [recording.measurement for recording in recordings]
    tokens, texts = _tokens(layout.corpus, rows), rows.stop - rows.start
    numbers = texts * sum(layout.numbers(measurement) for measurement in measurements)
    text = Text(texts, tokens // texts, _predicted(model, measurements, tokens))
    kept = predicts(measurements)
    return request_cost.of_walk(model, needs_of(measurements), text, numbers, kept)


def _predicted(model: Model, measurements: Sequence[Measurement], tokens: int) -> int:
    """Return the number of predictions that measurements read of some tokens."""
    return remote_traffic.of_lens(model, tokens) if predicts(measurements) else 0


def _checking_answer(model: Model) -> AbstractContextManager[None]:
    """Refuse a server's tensors that a measurement cannot compute with."""
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
