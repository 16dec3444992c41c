"""Requests of a sweep to a server, and what each of them takes."""

from robustness.ndif import answer
from robustness.runs.request_cost import RequestCost, Text, describe, of_plan
from robustness.schedules.plan import Plan
from robustness.sweeps import flops
from robustness.sweeps.preparation import PreparedSweep
from robustness.sweeps.tracing import outputs_of


def request_cost(prepared: PreparedSweep, rows: slice, plan: Plan) -> RequestCost:
    """Return the cost of a request.

    Parameters
    ----------
    prepared : PreparedSweep
        As from `prepare`.
    rows : slice
        Sequences.
    plan : Plan
        Plan of all schedules, or of a group of them.
    """
    sequences, width = rows.stop - rows.start, int(prepared.corpus.lengths[rows].max())
    queries = flops.query_count(prepared, width)
    outputs = outputs_of(prepared, plan.schedules, sequences, queries)
    return of_plan(
        prepared.model,
        plan,
        Text(sequences, width, sequences * queries),
        answer.size(outputs),
        bool(prepared.divergences),
        prepared.reads_logits,
    )


def batch_costs(prepared: PreparedSweep, rows: slice) -> list[RequestCost]:
    """Return the costs of the requests of a batch, one for each group of schedules."""
    costs = []
    for group in prepared.division.groups(prepared.requests):
        costs.append(request_cost(prepared, rows, prepared.plan(prepared.state_cap, group)))
    return costs


def describe_request(prepared: PreparedSweep, rows: slice, plan: Plan) -> str:
    """Return what a request takes, for a message."""
    return describe(request_cost(prepared, rows, plan))
