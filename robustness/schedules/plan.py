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
from typing import Any, NamedTuple

from robustness.schedules.notation import to_text
from robustness.schedules.schedule import Attention, Mlp, Step, leaves, lowest_block, plain

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
    per_group: int | None = None,
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
        Maximum number of states that are stacked in one call or one reading; without it, all that
        wait.
    per_group : int, optional
        Maximum number of schedules in a group; without it, all are one. Those that leave the clean
        run by the same step at the same place stay together, even if they are more.
    order : callable
        The sort key of a step; lower ones run first.

    Returns
    -------
    Plan
        Rows that compute and read every schedule, each distinct prefix once.
    """
    if cap is not None and cap < 1:
        raise ValueError(f"a cap of {cap} rows: at least one state must fit")
    prefixes = _number_prefixes(schedules, clean)
    compilation = _Compilation(prefixes, _group_states(prefixes, per_group or len(schedules)), cap)
    compilation.run(order)
    called = [leaf for _, step in prefixes.origins.values() for leaf in leaves(step)]
    alone = sum(isinstance(leaf, (Attention, Mlp)) for leaf in called)
    return Plan(
        rows=tuple(compilation.rows),
        clean_states=compilation.start,
        schedules=len(schedules),
        applications=len(prefixes.origins),
        block_calls=len(called) - alone,
        sublayer_calls=alone,
        calls=sum(kind == RUN for kind, *_ in compilation.rows),
        peak=compilation.peak,
    )


class _Prefixes(NamedTuple):
    """The distinct prefixes of schedules, numbered: each is the state that it leads to."""

    clean: int
    """Number of states of the clean run, which have the lowest numbers."""
    origins: dict[int, tuple[int, Any]]
    """The state and the step that each computed state is made of."""
    ends: list[int]
    """The state that each schedule ends in."""


def _number_prefixes(schedules: Sequence[tuple[Any, ...]], clean: tuple[Any, ...]) -> _Prefixes:
    """Number every distinct prefix, those of the clean schedule first."""
    numbers = {(depth, step): depth + 1 for depth, step in enumerate(clean)}
    origins: dict[int, tuple[int, Any]] = {}
    ends = []
    for schedule in schedules:
        state = 0
        for step in schedule:
            origin = (state, step)
            if origin not in numbers:
                numbers[origin] = len(numbers) + 1
                origins[numbers[origin]] = origin
            state = numbers[origin]
        ends.append(state)
    return _Prefixes(len(clean) + 1, origins, ends)


def _group_states(prefixes: _Prefixes, per_group: int) -> dict[int, int]:
    """Return the group of every computed state."""
    # The first computed state on the way to each: what shares it stays together.
    first: dict[int, int] = {}
    for state, (source, _) in prefixes.origins.items():
        first[state] = first.get(source, state)
    sizes = Counter(first[end] for end in prefixes.ends if end in first)
    groups: dict[int, int] = {}
    group = filled = 0
    for state, size in sizes.items():
        if filled and filled + size > per_group:
            group, filled = group + 1, 0
        groups[state] = group
        filled += size
    return {state: groups[origin] for state, origin in first.items()}


class _Compilation:
    """The rows of a plan in the making, and which states are alive and which wait meanwhile."""

    def __init__(self, prefixes: _Prefixes, groups: dict[int, int], cap: int | None) -> None:
        self._readers: dict[int, list[int]] = defaultdict(list)
        for index, end in enumerate(prefixes.ends):
            self._readers[end].append(index)
        self._children: dict[int, list[tuple[Any, int]]] = defaultdict(list)
        for state, (source, step) in prefixes.origins.items():
            self._children[source].append((step, state))
        self._uses = {}
        for state in (*range(prefixes.clean), *prefixes.origins):
            self._uses[state] = len(self._children[state]) + bool(self._readers[state])
        # Of every group, the states that wait for each step, each with the state it will become.
        self._waiting: list[dict[Any, list[tuple[int, int]]]] = []
        for _ in range(1 + max(groups.values(), default=0)):
            self._waiting.append(defaultdict(list))
        self._groups, self._cap = groups, cap
        self.start = tuple(state for state in range(prefixes.clean) if self._uses[state])
        """The clean states that are needed."""
        self.rows: list[Row] = []
        self._alive = self.peak = len(self.start)

    def run(self, order: Callable[[Any], Any]) -> None:
        """Write the rows: group by group, always the lowest step that states wait for."""
        self._arrive(self.start)
        for steps in self._waiting:
            while steps:
                step = min(steps, key=order)
                for stacked in _in_pieces(steps.pop(step), self._cap):
                    self._call(step, stacked)

    def _call(self, step: Any, stacked: Sequence[tuple[int, int]]) -> None:
        """Execute a step on states that wait for it."""
        sources, results = zip(*stacked, strict=True)
        # Results are there before the last state that they are made of is released.
        self.peak = max(self.peak, self._alive + len(results))
        done = self._release(sources)
        self.rows.append((RUN, plain(step), sources, results, done))
        self._alive += len(results) - len(done)
        self._arrive(results)

    def _arrive(self, arrived: Sequence[int]) -> None:
        """Queue the children of new states, then read those of them that end a schedule."""
        for state in arrived:
            for step, child in self._children[state]:
                self._waiting[self._groups[child]][step].append((state, child))
        final = [state for state in arrived if self._readers[state]]
        for stacked in _in_pieces(final, self._cap):
            done = self._release(stacked)
            ends = tuple(tuple(self._readers[state]) for state in stacked)
            self.rows.append((READ, None, tuple(stacked), ends, done))
            self._alive -= len(done)

    def _release(self, sources: Sequence[int]) -> tuple[int, ...]:
        """Count a use of each state, and return those that are not needed any more."""
        for state in sources:
            self._uses[state] -= 1
        return tuple(state for state in sources if not self._uses[state])


def _in_pieces(items: Sequence[Any], size: int | None) -> list[Sequence[Any]]:
    size = size or max(1, len(items))
    return [items[i : i + size] for i in range(0, len(items), size)]
