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
"""Maximum number of groups of schedules that are compared for each of the sizes that are tried."""

MORE = 1.25
"""Factor by which the number of requests is raised where memory does not hold one of them."""


@dataclass(frozen=True)
class Reads:
    """What is read of the final states of a sequence."""

    queries: int
    """Number of tokens whose predictions are read."""
    diverges: bool = False
    """Whether a KL is read."""
    logits: bool = False
    """Whether a metric reads logits."""


@dataclass(frozen=True)
class _Run:
    """A run of schedules whose sizes are sought."""

    model: Model
    division: Division
    length: int
    reads: Reads
    cap: int | None

    def cost(self, sizes: Sizes, most_compared: int = MOST_COMPARED) -> RequestCost:
        """Return the largest of every number of the requests of a full batch, or of some."""
        sequences = max(1, sizes.text // self.length)
        text = Text(sequences, self.length, sequences * self.reads.queries)
        cap = self.cap or sizes.state_cap(text.tokens)
        groups = self.division.groups(sizes.requests)
        costs = []
        # They cost about the same: of very many, some stand for all.
        for group in groups[:: -(-len(groups) // most_compared)]:
            plan = self.division.plan(cap, group)
            read = self.reads
            costs.append(of_plan(self.model, plan, text, 0, read.diverges, read.logits))
        return RequestCost.largest(costs)


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
    run, count = _Run(model, division, length, reads, cap), len(division.schedules)
    start = Sizes(text or power_of_two(length), power_of_two(text or length))
    start = replace(start, requests=_fewest(budget, count, start, run.cost))
    if not budget.allows(run.cost(start)):
        return start
    most = ON_CPU if on_cpu else Sizes(MOST_TEXT, MOST_CALL)
    grown = _grown(budget, start, most if text is None else replace(most, text=text), run.cost)
    while grown.requests < count and not budget.allows(run.cost(grown, count)):
        grown = replace(grown, requests=math.ceil(grown.requests * MORE))
    return grown


def _fewest(budget: Budget, most: int, start: Sizes, cost: Callable[[Sizes], RequestCost]) -> int:
    """Return about the smallest number of requests, up to `most`, that a budget allows."""
    # What one schedule takes cannot be divided: the server is left to try.
    if cost(replace(start, requests=most)).memory_bytes > budget.memory_bytes:
        budget = replace(budget, memory_bytes=math.inf)
    requests = 1
    while requests < most:
        found = cost(replace(start, requests=requests))
        if budget.allows(found):
            break
        late = found.seconds > budget.seconds
        more = requests * (found.seconds / budget.seconds if late else MORE)
        requests = min(most, max(requests + 1, math.ceil(more)))
    return requests


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


def of_clean_run(
    model: Model, needs: Sequence[str], length: int, queries: int, numbers: int
) -> int:
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
    numbers : int
        Number of numbers that are returned of a sequence.
    """
    usual = ON_CPU if model.identity["device"] == "cpu" else ON_SERVER
    budget, text = budget_for(model), power_of_two(length)
    if budget is None:
        return usual.text
    while 2 * text <= usual.text:
        sequences = max(1, 2 * text // length)
        shape = Text(sequences, length, sequences * queries)
        returned, kept = sequences * numbers, "prediction" in needs
        if not budget.allows(of_walk(model, needs, shape, returned, kept)):
            break
        text *= 2
    return text
