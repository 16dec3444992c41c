"""Schedules to a plan: every shared prefix once, in which order, and at what exact cost.

Schedules form a tree of prefixes. Prefixes of the clean schedule cost nothing, because the clean
run passes through them; every other distinct prefix is one step applied to one state. States that
wait for the same step are stacked and go through it together, the lowest block first, so that a
drop sweep visits each block once, and drop and swap together visit it twice.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

RUN, READ = "run", "read"

Row = tuple[str, Any, tuple[int, ...], tuple[Any, ...], tuple[int, ...]]
"""One instruction of a plan.

`(RUN, step, states in, states out, states no longer needed)`, or
`(READ, None, states, the indices of the schedules that end in each, states no longer needed)`.
"""


@dataclass(frozen=True)
class Plan:
    """The order in which the distinct prefixes of several schedules are computed.

    States are numbered: 0 to L are what the clean run leaves after that many blocks, higher
    numbers are computed.
    """

    rows: tuple[Row, ...]
    clean_states: tuple[int, ...]
    """The clean states that are needed, in ascending order."""
    schedules: int
    """How many schedules are read."""
    applications: int
    """Steps applied to single states: the number of distinct prefixes that are not clean."""
    calls: int
    """Steps called, each on all the states stacked for it."""
    peak: int
    """The largest number of states alive at once, the clean ones that are still needed included.

    States of one call share their memory, which is free when the last of them is."""


def compile_plan(
    schedules: Sequence[tuple[Hashable, ...]],
    clean: tuple[Hashable, ...],
    *,
    cap: int | None = None,
    order: Callable[[Any], Any] = lambda step: step,
) -> Plan:
    """Compile schedules into a plan.

    Parameters
    ----------
    schedules : sequence of tuple
        What is to be executed; schedules may be equal.
    clean : tuple
        The clean schedule.
    cap : int, optional
        The most states that are stacked in one call or one reading; without it, all that wait.
    order : callable
        The sort key of a step; lower ones run first.

    Returns
    -------
    Plan
        Rows that compute and read every schedule, each distinct prefix once.
    """
    if cap is not None and cap < 1:
        raise ValueError(f"a cap of {cap} rows: at least one state must fit")
    states, parent = _number_prefixes(schedules, clean)
    readers: dict[int, list[int]] = defaultdict(list)
    for index, schedule in enumerate(schedules):
        readers[states[schedule]].append(index)
    children: dict[int, list[tuple[Hashable, int]]] = defaultdict(list)
    for state, (source, step) in parent.items():
        children[source].append((step, state))
    uses = {state: len(children[state]) + bool(readers[state]) for state in states.values()}

    start = tuple(sorted(s for s in states.values() if s not in parent and uses[s]))
    waiting: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
    rows: list[Row] = []
    alive = peak = len(start)

    def release(sources: Sequence[int]) -> tuple[int, ...]:
        for state in sources:
            uses[state] -= 1
        return tuple(state for state in sources if not uses[state])

    def arrive(arrived: Sequence[int]) -> None:
        """Queue the children of new states, then read those of them that end a schedule."""
        nonlocal alive
        for state in arrived:
            for step, child in children[state]:
                waiting[step].append((state, child))
        final = [state for state in arrived if readers[state]]
        for part in _parts(final, cap):
            done = release(part)
            ends = tuple(tuple(readers[state]) for state in part)
            rows.append((READ, None, tuple(part), ends, done))
            alive -= len(done)

    arrive(start)
    while waiting:
        step = min(waiting, key=order)
        queue = waiting.pop(step)
        for part in _parts(queue, cap):
            sources, results = zip(*part, strict=True)
            peak = max(peak, alive + len(results))
            done = release(sources)
            rows.append((RUN, step, sources, results, done))
            alive += len(results) - len(done)
            arrive(results)
    return Plan(
        rows=tuple(rows),
        clean_states=start,
        schedules=len(schedules),
        applications=len(parent),
        calls=sum(kind == RUN for kind, *_ in rows),
        peak=peak,
    )


def _number_prefixes(
    schedules: Sequence[tuple[Hashable, ...]], clean: tuple[Hashable, ...]
) -> tuple[dict[tuple[Hashable, ...], int], dict[int, tuple[int, Hashable]]]:
    """Number every distinct prefix; return the numbers, and of each computed state its origin."""
    states = {clean[:depth]: depth for depth in range(len(clean) + 1)}
    parent: dict[int, tuple[int, Hashable]] = {}
    for schedule in schedules:
        for end in range(1, len(schedule) + 1):
            prefix = schedule[:end]
            if prefix not in states:
                states[prefix] = len(states)
                parent[states[prefix]] = (states[prefix[:-1]], prefix[-1])
    return states, parent


def _parts(items: Sequence[Any], cap: int | None) -> list[Sequence[Any]]:
    size = cap or max(1, len(items))
    return [items[i : i + size] for i in range(0, len(items), size)]
