"""Traces of a sweep, which are requests to a server, and what each of them takes."""

from collections.abc import Sequence

from robustness.ndif import answer
from robustness.runs import remote_traffic
from robustness.runs.foresight import Foresight
from robustness.runs.remote_traffic import Crossing
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


def foresee(prepared: PreparedSweep, batches: Sequence[slice]) -> Foresight:
    """Return what measuring some batches is about to do.

    Parameters
    ----------
    prepared : PreparedSweep
        As from `prepare`.
    batches : sequence of slice
        Sequences of each batch.
    """
    # Mostly all batches but the last have one shape.
    known: dict[tuple[int, int], tuple[list[RequestCost], list[Crossing]]] = {}
    costs: list[RequestCost] = []
    crossings: list[Crossing] = []
    texts = tokens = 0
    for rows in batches:
        shape = rows.stop - rows.start, prepared.tokens(rows)
        if shape not in known:
            known[shape] = _foresee_batch(prepared, rows)
        costs += known[shape][0]
        crossings += known[shape][1]
        texts += rows.stop - rows.start
        tokens += int(prepared.corpus.lengths[rows].sum())
    return Foresight(prepared.model, texts, tokens, costs, crossings)


def _foresee_batch(
    prepared: PreparedSweep, rows: slice
) -> tuple[list[RequestCost], list[Crossing]]:
    """Return the cost and the traffic of a batch's traces, one for each group of schedules."""
    costs, crossings = [], []
    tokens, kinds = prepared.tokens(rows), len(prepared.divergences)
    for group in prepared.division.groups(prepared.requests):
        plan = prepared.plan(prepared.state_cap, group)
        costs.append(request_cost(prepared, rows, plan))
        crossings.append(
            remote_traffic.of_plan(
                prepared.model, plan, tokens, tokens, kinds, logits=prepared.reads_logits
            )
        )
    return costs, crossings


def describe_request(prepared: PreparedSweep, rows: slice, plan: Plan) -> str:
    """Return what a request takes, for a message."""
    return describe(request_cost(prepared, rows, plan))
