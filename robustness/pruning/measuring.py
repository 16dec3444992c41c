"""Measuring of candidates on batches of a text: the plan and the trace of a sweep of schedules."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from robustness.files.kinds.searches import READ
from robustness.files.labels import schedule_labels
from robustness.models.model import Model
from robustness.runs.attempts import Lacking
from robustness.runs.budget import pace_of
from robustness.runs.portions import Portions
from robustness.runs.settings import RunOptions
from robustness.schedules import Schedule, clean
from robustness.sweeps.batch import measure_in_portions, work_of
from robustness.sweeps.preparation import PreparedSweep, choose_sizes, divide, prepare, reads_of
from robustness.sweeps.settings import SweepSettings
from robustness.sweeps.tracing import measure_batch
from robustness.text.corpus import Corpus

READ_NAMES = tuple(metric.name for metric in READ)

Record = Callable[[int, str, Lacking], object]
"""Function that records where portions are made smaller."""

LOOKS = 16
"""Number of batches that a text is divided into at least, where a race looks at its scores."""


class Measurer:
    """Measures any schedules on any sequences of a text.

    Parameters
    ----------
    model : Model
        An opened model.
    corpus : Corpus
        All sequences.
    options : RunOptions
        Sizes of batches, and callbacks.
    """

    def __init__(self, model: Model, corpus: Corpus, options: RunOptions) -> None:
        settings = SweepSettings(schedules=[clean(model.layers)], readouts=READ_NAMES)
        self._options = replace(options, out=None)
        self._prepared = prepare(model, corpus, settings, self._options)
        self.batch_tokens = self._batch_tokens(options)
        if options.batch_tokens is None:
            # How many states go together follows from a batch, as it will when the run goes on.
            self._options = replace(self._options, batch_tokens=self.batch_tokens)
            self._prepared = prepare(model, corpus, settings, self._options)
        self._portions = Portions()
        self._work = work_of(self._prepared, lambda rows, plan: {})

    @property
    def state_cap(self) -> int:
        """Maximum number of states that go through a block together."""
        return self._prepared.state_cap

    def prepared(self, schedules: Sequence[Schedule]) -> PreparedSweep:
        """Return the sweep of some schedules, each of them once."""
        if list(schedules) == self._prepared.schedules:
            return self._prepared
        model, corpus = self._prepared.model, self._prepared.corpus
        division = divide(model, schedules)
        requests = 1
        if model.request:
            sized = replace(self._options, batch_tokens=self.batch_tokens, state_cap=self.state_cap)
            reads = reads_of(corpus, self._prepared.settings)
            requests = choose_sizes(model, division, corpus.context, reads, sized).requests
        return replace(
            self._prepared,
            schedules=list(schedules),
            labels=schedule_labels(schedules),
            division=division,
            requests=requests,
        )

    def begin(self, lowered: str, record: Record) -> None:
        """Begin to measure, with the portions that were recorded, and record any that are lowered.

        Parameters
        ----------
        lowered : str
            What was made smaller in an earlier call.
        record : callable
            As for `Portions`.
        """
        model, tell = self._prepared.model, self._options.tell
        self._portions = Portions(record, tell, pace=pace_of(model, tell))
        self._portions.begin(lowered)
        self._matrix = self._portions.matrix(model.unembedding, 0)
        self._prepare(self._prepared.schedules)

    def measure(
        self, schedules: Sequence[Schedule], rows: slice
    ) -> dict[str, NDArray[np.floating]]:
        """Return readouts (schedule, sequence) of schedules, and `clean_loss` (sequence,)."""
        if list(schedules) != self._prepared.schedules:
            self._prepare(schedules)
        found = measure_in_portions(self._prepared, rows, self._portions, self._work)
        return {name: found[name] for name in (*READ_NAMES, "clean_loss")}

    def applications(self, schedules: Sequence[Schedule], rows: slice) -> int:
        """Return how many blocks and sublayers a measuring applies, the clean run included."""
        prepared = self.prepared(schedules)
        total = 0
        for group in prepared.division.groups(prepared.requests):
            plan = prepared.plan(prepared.state_cap, group)
            total += plan.block_calls + plan.sublayer_calls + prepared.model.layers
        return total * (rows.stop - rows.start)

    def _prepare(self, schedules: Sequence[Schedule]) -> None:
        """Prepare the measuring of some schedules."""
        prepared = self.prepared(schedules)
        self._work = work_of(
            prepared, lambda rows, plan: measure_batch(prepared, rows, plan, self._matrix)
        )
        self._prepared = prepared

    def _batch_tokens(self, options: RunOptions) -> int:
        """Return the tokens of a batch: small enough for a race to look at its scores often."""
        chosen = int(self._prepared.blank.attrs["batch_tokens"])
        if options.batch_tokens is not None:
            return chosen
        corpus = self._prepared.corpus
        return min(chosen, max(corpus.context, int(corpus.lengths.sum()) // LOOKS))
