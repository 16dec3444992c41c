"""Measurement of a batch of text under schedules, in portions where it is too large."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustness.files.metrics import NONFINITE
from robustness.runs.portions import Piece, Portions, Work
from robustness.schedules.plan import Plan
from robustness.sweeps import token_counts, token_file
from robustness.sweeps.preparation import PreparedSweep
from robustness.sweeps.requests import describe_request

Values = dict[str, NDArray[Any]]
"""The values of every variable, laid out as in the file, the sequence their last dimension."""


def work_of(prepared: PreparedSweep, run: Callable[[slice, Plan], Values]) -> Work[Values]:
    """Return how batches are measured, by a function that runs a plan on some sequences."""
    # Batches differ in how many states they stack only after memory has run out.
    compiled = lru_cache(maxsize=8)(lambda cap, start, stop: prepared.plan(cap, slice(start, stop)))

    def plan(piece: Piece) -> Plan:
        cap = min(prepared.state_cap, piece.cap or prepared.state_cap)
        made: Plan = compiled(cap, piece.group.start, piece.group.stop)
        return made

    return Work(
        lambda piece: run(piece.rows, plan(piece)),
        prepared.tokens,
        lambda piece: plan(piece).widest,
        prepared.division,
        prepared.requests,
        lambda piece: describe_request(prepared, piece.rows, plan(piece)),
    )


def measure_in_portions(
    prepared: PreparedSweep,
    rows: slice,
    portions: Portions,
    work: Work[Values],
    counts: NDArray[np.int32] | None = None,
) -> Values:
    """Measure a batch, in smaller portions where one is too large.

    Parameters
    ----------
    prepared : PreparedSweep
        What is measured.
    rows : slice
        Sequences of the batch.
    portions : Portions
        How much is measured at once.
    work : Work
        As from `work_of`.
    counts : int32 array of shape (run, token), optional
        Array to which is added how often each token is the most likely one.

    Returns
    -------
    dict of str to array
        The values of every variable, and of single tokens.
    """
    measured: list[Values] = []
    for _, of_groups in portions.each(rows, work):
        found = _join_schedules(prepared, of_groups)
        measured.append(_lay_out(prepared, found))
        if counts is not None:
            token_counts.add(counts, found)
    joined = {}
    for name in measured[0]:
        joined[name] = np.concatenate([portion[name] for portion in measured], axis=-1)
    return joined


def _join_schedules(prepared: PreparedSweep, of_groups: Sequence[Values]) -> Values:
    """Join what groups of schedules yielded, with the clean run's readouts from the first."""
    clean = {metric.name for metric in prepared.clean_readouts}
    clean |= {f"{token_file.PREFIX}{name}" for name in clean}
    joined = dict(of_groups[0])
    for name in joined.keys() - clean if len(of_groups) > 1 else ():
        joined[name] = np.concatenate([values[name] for values in of_groups])
    return joined


def _lay_out(prepared: PreparedSweep, measured: Values) -> Values:
    """Lay out what some sequences yielded as it stands in the files."""
    values = {}
    for metric in (*prepared.readouts, NONFINITE):
        values[metric.name] = prepared.labels.spread(measured[metric.name])
    for metric in prepared.clean_readouts:
        values[metric.name] = measured[metric.name]
    if prepared.settings.per_token:
        kept = (*prepared.readouts, *prepared.clean_readouts)
        names = [f"{token_file.PREFIX}{metric.name}" for metric in kept]
        first = 0 if prepared.corpus.authors_alignment else 1
        single = {name: measured[name] for name in names}
        values |= token_file.spread(single, prepared.labels, first, prepared.corpus.context)
    return values
