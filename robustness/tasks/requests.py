"""Traces of tasks, which are requests to a server, and what each of them takes."""

from collections.abc import Sequence

from robustness.runs import remote_traffic
from robustness.runs.foresight import Foresight
from robustness.runs.settings import RunOptions
from robustness.tasks.preparation import PreparedTasks


def cap_of(prepared: PreparedTasks, rows: slice, options: RunOptions) -> int:
    """Return the maximum number of states of a batch that go through a block together."""
    return options.state_cap or prepared.chosen.state_cap(prepared.width(rows))


def foresee(prepared: PreparedTasks, batches: Sequence[slice], options: RunOptions) -> Foresight:
    """Return what scoring some batches is about to do.

    Parameters
    ----------
    prepared : PreparedTasks
        As from `prepare_tasks`.
    batches : sequence of slice
        Continuations of each batch, in order of length.
    options : RunOptions
        Options of the run, of which `state_cap` is used.
    """
    model, division = prepared.model, prepared.division
    costs, crossings = [], []
    for rows in batches:
        width, scored = prepared.width(rows), prepared.scored(rows)
        for group in division.groups(prepared.chosen.requests):
            plan = division.plan(cap_of(prepared, rows, options), group)
            costs.append(prepared.cost(rows, plan))
            crossings.append(remote_traffic.of_plan(model, plan, width, scored, 0))
    texts = sum(rows.stop - rows.start for rows in batches)
    tokens = sum(sum(prepared.lengths[rows]) for rows in batches)
    return Foresight(model, texts, tokens, costs, crossings)
