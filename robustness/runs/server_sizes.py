"""Sizes of a run on a server: what of a batch goes into one request, within its budget.

First, as few requests as there can be are taken for the schedules of one sequence. Then states are
stacked until a call keeps a GPU busy, text is added, and calls are widened, as long as memory and
time allow. All are powers of two, so that small differences change nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from robustness.models.model import Model
from robustness.runs.budget import Budget, budget_for
from robustness.runs.request_cost import RequestCost, Text, of_plan, of_walk
from robustness.runs.sizes import (
    LEAST_CALL,
    MOST_CALL,
    MOST_TEXT,
    ON_CPU,
    ON_SERVER,
    Sizes,
    power_of_two,
)
from robustness.schedules.division import Division

MOST_COMPARED = 32
"""Maximum number of groups of schedules whose plans are compiled to compare their costs."""


@dataclass(frozen=True)
class Reads:
    """What is read of the final states of a sequence."""

    queries: int
    """Number of tokens whose predictions are read."""
    diverges: bool = False
    """Whether a KL is read."""
    logits: bool = False
    """Whether a metric reads logits."""


def choose(
    model: Model,
    division: Division,
    length: int,
    reads: Reads,
    text: int | None = None,
    cap: int | None = None,
) -> Sizes:
    """Return the sizes of a run of schedules on a server.

    Parameters
    ----------
    model : Model
        A model on a server.
    division : Division
        The schedules.
    length : int
        Number of tokens of the longest sequence.
    reads : Reads
        What is read of a sequence.
    text, cap : int, optional
        Tokens of text in a trace, and states that go through a block together, where the user has
        asked for them.
    """
    on_cpu, budget = model.identity["device"] == "cpu", budget_for(model)
    if budget is None:
        return ON_CPU if on_cpu else ON_SERVER
    most = ON_CPU if on_cpu else Sizes(MOST_TEXT, MOST_CALL)

    def cost(sizes: Sizes) -> RequestCost:
        return largest(model, division, length, reads, sizes, cap)

    start = Sizes(text or power_of_two(length), power_of_two(text or length))
    start = replace(start, requests=_fewest(budget, len(division.schedules), start, cost))
    if text is not None:
        most = replace(most, text=start.text)
    return _grown(budget, start, most, cost)


def largest(
    model: Model, division: Division, length: int, reads: Reads, sizes: Sizes, cap: int | None
) -> RequestCost:
    """Return the greatest of each cost of the requests of a full batch.

    Parameters
    ----------
    model, division, length, reads, cap
        As for `choose`.
    sizes : Sizes
        The sizes.
    """
    sequences = max(1, sizes.text // length)
    text = Text(sequences, length, sequences * reads.queries)
    cap = cap or sizes.state_cap(text.tokens)
    groups = division.groups(sizes.requests)
    costs = []
    # They cost about the same: of very many, some stand for all.
    for group in groups[:: -(-len(groups) // MOST_COMPARED)]:
        plan = division.plan(cap, group)
        costs.append(of_plan(model, plan, text, 0, reads.diverges, reads.logits))
    return RequestCost.largest(costs)


def _fewest(budget: Budget, most: int, start: Sizes, cost: Callable[[Sizes], RequestCost]) -> int:
    """Return the smallest number of requests that a budget allows for a batch, about."""
    requests, previous = 1, math.inf
    while True:
        found = cost(replace(start, requests=requests))
        if budget.allows(found) or requests >= most:
            return requests
        late = found.seconds > budget.seconds
        # Where memory does not hold what cannot be divided, the server is left to try.
        if not late and found.memory_bytes >= previous:
            return requests
        previous = found.memory_bytes if not late else math.inf
        more = requests * found.seconds / budget.seconds if late else requests * 1.25
        requests = min(most, max(requests + 1, math.ceil(more)))


def _grown(
    budget: Budget, sizes: Sizes, most: Sizes, cost: Callable[[Sizes], RequestCost]
) -> Sizes:
    """Return larger sizes that a budget allows, up to some."""

    def grow(sizes: Sizes, double: Callable[[Sizes], Sizes], least: int) -> Sizes:
        larger = double(sizes)
        while larger.text <= most.text and larger.call <= least and budget.allows(cost(larger)):
            sizes, larger = larger, double(larger)
        return sizes

    def wider(sizes: Sizes) -> Sizes:
        return replace(sizes, call=2 * sizes.call)

    def longer(sizes: Sizes) -> Sizes:
        return replace(sizes, text=2 * sizes.text, call=max(sizes.call, 2 * sizes.text))

    sizes = grow(sizes, wider, min(LEAST_CALL, most.call))
    sizes = grow(sizes, longer, most.call)
    return grow(sizes, wider, most.call)


def of_clean_run(model: Model, needs: Sequence[str], length: int, queries: int) -> int:
    """Return the tokens of text in a request that observes the clean run.

    Parameters
    ----------
    model : Model
        A model on a server.
    needs : sequence of str
        Names of the captured tensors.
    length : int
        Number of tokens of the longest sequence.
    queries : int
        Number of predictions that are read of a sequence, at all depths.
    """
    usual = ON_CPU if model.identity["device"] == "cpu" else ON_SERVER
    budget, text = budget_for(model), power_of_two(length)
    if budget is None:
        return usual.text
    while 2 * text <= usual.text:
        sequences = max(1, 2 * text // length)
        shape = Text(sequences, length, sequences * queries)
        if not budget.allows(of_walk(model, needs, shape, 0, "prediction" in needs)):
            break
        text *= 2
    return text
