"""Schedules to a plan: every shared prefix once, in which order, and at what exact cost.

Schedules form a tree of prefixes. Prefixes of the clean schedule cost nothing, because the clean
run passes through them; every other distinct prefix is one step applied to one state. States that
wait for the same step are stacked and go through it together, the lowest block first, so that a
drop sweep visits each block once, and drop and swap together visit it twice. All that waits is
alive, so that very many schedules are taken in groups, none of which shares a prefix with another.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from robustness.schedules.schedule import Attention, Mlp, Step, leaves, lowest_block, plain, to_text

RUN, READ = "run", "read"

Row = tuple[str, Any, tuple[int, ...], tuple[Any, ...], tuple[int, ...]]
"""One instruction of a plan.

`(RUN, step, states in, states out, states no longer needed)`, the step as `schedule.plain`, or
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
    block_calls: int
    """Blocks called on single states: several by a step that executes several on one input."""
    sublayer_calls: int
    """Attentions and MLPs called alone on single states."""
    calls: int
    """Steps called, each on all the states stacked for it."""
    peak: int
    """The largest number of states alive at once, the clean ones that are still needed included.

    States of one call share their memory, which is free when the last of them is."""

    @property
    def widest(self) -> int:
        """The most states that go through a step together."""
        return max((len(sources) for kind, _, sources, *_ in self.rows if kind == RUN), default=1)


def lowest(step: Step) -> tuple[int, str]:
    """Return the sort key of a step: its lowest block, and among steps of that its text.

    >>> lowest(3) < lowest(Attention(3)) < lowest(4)
    True
    """
    if isinstance(step, int):
        return step, ""
    return lowest_block(step), to_text((step,))


def compile_plan(
    schedules: Sequence[tuple[Hashable, ...]],
    clean: tuple[Hashable, ...],
    *,
    cap: int | None = None,
    room: int | None = None,
    order: Callable[[Any], Any] = lowest,
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
    room : int, optional
        The most schedules in a group; without it, all are one. Those that leave the clean run by
        the same step at the same place stay together, even if they are more.
    order : callable
        The sort key of a step; lower ones run first.

    Returns
    -------
    Plan
        Rows that compute and read every schedule, each distinct prefix once.
    """
    if cap is not None and cap < 1:
        raise ValueError(f"a cap of {cap} rows: at least one state must fit")
    ends, parent = _number_prefixes(schedules, clean)
    readers: dict[int, list[int]] = defaultdict(list)
    for index, end in enumerate(ends):
        readers[end].append(index)
    children: dict[int, list[tuple[Any, int]]] = defaultdict(list)
    for state, (source, step) in parent.items():
        children[source].append((step, state))
    states = (*range(len(clean) + 1), *parent)
    group = _divide(ends, parent, room or len(schedules))
    uses = {state: len(children[state]) + bool(readers[state]) for state in states}

    start = tuple(state for state in states if state not in parent and uses[state])
    waiting: list[dict[Any, list[tuple[int, int]]]]
    waiting = [defaultdict(list) for _ in range(1 + max(group.values(), default=0))]
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
                waiting[group[child]][step].append((state, child))
        final = [state for state in arrived if readers[state]]
        for part in _parts(final, cap):
            done = release(part)
            ends = tuple(tuple(readers[state]) for state in part)
            rows.append((READ, None, tuple(part), ends, done))
            alive -= len(done)

    arrive(start)
    for steps in waiting:
        while steps:
            step = min(steps, key=order)
            for part in _parts(steps.pop(step), cap):
                sources, results = zip(*part, strict=True)
                peak = max(peak, alive + len(results))
                done = release(sources)
                rows.append((RUN, plain(step), sources, results, done))
                alive += len(results) - len(done)
                arrive(results)
    called = [leaf for _, step in parent.values() for leaf in leaves(step)]
    alone = sum(isinstance(leaf, (Attention, Mlp)) for leaf in called)
    return Plan(
        rows=tuple(rows),
        clean_states=start,
        schedules=len(schedules),
        applications=len(parent),
        block_calls=len(called) - alone,
        sublayer_calls=alone,
        calls=sum(kind == RUN for kind, *_ in rows),
        peak=peak,
    )


def _number_prefixes(
    schedules: Sequence[tuple[Any, ...]], clean: tuple[Any, ...]
) -> tuple[list[int], dict[int, tuple[int, Any]]]:
    """Number every distinct prefix; return each schedule's, and of computed ones the origin."""
    numbers = {(depth, step): depth + 1 for depth, step in enumerate(clean)}
    parent: dict[int, tuple[int, Any]] = {}
    ends = []
    for schedule in schedules:
        state = 0
        for step in schedule:
            origin = (state, step)
            if origin not in numbers:
                numbers[origin] = len(numbers) + 1
                parent[numbers[origin]] = origin
            state = numbers[origin]
        ends.append(state)
    return ends, parent


def _divide(
    ends: Sequence[int],
    parent: dict[int, tuple[int, Any]],
    room: int,
) -> dict[int, int]:
    """Return of every computed state the group, given the most schedules in one."""
    root: dict[int, int] = {}
    for state, (source, _) in parent.items():
        root[state] = root.get(source, state)
    sizes = Counter(root[end] for end in ends if end in root)
    groups: dict[int, int] = {}
    group = filled = 0
    for first, size in sizes.items():
        if filled and filled + size > room:
            group, filled = group + 1, 0
        groups[first], filled = group, filled + size
    return {state: groups[first] for state, first in root.items()}


def _parts(items: Sequence[Any], cap: int | None) -> list[Sequence[Any]]:
    size = cap or max(1, len(items))
    return [items[i : i + size] for i in range(0, len(items), size)]
