"""Plans: the order in which the prefixes of several schedules are computed, each of them once.

Schedules form a tree of prefixes. Prefixes of the clean schedule cost nothing, because the clean
run passes through them. Every other distinct prefix is one step applied to one state. States that
wait for the same step are stacked and go through it together, the lowest block first: a drop sweep
visits each block once, and drop and swap together visit it twice. Waiting states take memory, so
that very many schedules are computed in groups, which share no computed prefix.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from robustness.schedules.notation import to_text
from robustness.schedules.steps import Attention, Leaf, Mlp, Step, leaves, lowest_block, plain

RUN, READ = "run", "read"
"""Kinds of rows."""

Row = tuple[str, Any, tuple[int, ...], tuple[Any, ...], tuple[int, ...]]
"""Row of a plan: one instruction.

It is `(RUN, step, states in, states out, states no longer needed)` with a step as from
`schedule.plain`, or `(READ, None, states, schedules that end in each, states no longer needed)`
with the indices of schedules.
"""


@dataclass(frozen=True)
class Plan:
    """The order in which the distinct prefixes of several schedules are computed.

    States are numbered: 0 to L are what the clean run leaves after that many blocks, higher
    numbers are computed.
    """

    rows: tuple[Row, ...]
    clean_states: tuple[int, ...]
    """Clean states that are needed, in ascending order."""
    schedules: int
    """Number of schedules that are read."""
    applications: int
    """Number of steps applied to single states: of distinct prefixes that are not clean."""
    block_calls: int
    """Number of blocks applied to single states; a step on one input may apply several."""
    sublayer_calls: int
    """Number of attentions and MLPs applied alone to single states."""
    calls: int
    """Number of calls of steps, each on all the states stacked for it."""
    peak: int
    """Largest number of states alive at once, including clean ones that are still needed.

    States of one call share their memory, which is freed with the last of them."""

    @property
    def widest(self) -> int:
        """Maximum number of states that go through a step together."""
        stacked = [len(sources) for kind, _, sources, *_ in self.rows if kind == RUN]
        return max(stacked, default=1)


def lowest(step: Step) -> tuple[int, str]:
    """Return the sort key of a step: its lowest block, then its text.

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
        Schedules to execute; they may be equal.
    clean : tuple
        The clean schedule.
    cap : int, optional
        Maximum number of states that are stacked in one call or one reading; by default unlimited.
    per_group : int, optional
        Maximum number of schedules in a group; by default all are one group. Schedules that leave
        the clean run by the same step at the same place stay together, even if they are more.
    order : callable
        Sort key of a step; lower ones run first.

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
    called: list[Leaf] = []
    for _, step in prefixes.origins.values():
        called += leaves(step)
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
    """Distinct prefixes of schedules, each with the number of the state that it leads to."""

    clean: int
    """Number of states of the clean run, which have the lowest numbers."""
    origins: dict[int, tuple[int, Any]]
    """Source state and step of each computed state, by its number."""
    ends: list[int]
    """Final state of each schedule."""


def _number_prefixes(schedules: Sequence[tuple[Any, ...]], clean: tuple[Any, ...]) -> _Prefixes:
    """Number every distinct prefix, those of the clean schedule first."""
    # A prefix is known by its source state and its last step, so that two schedules share a number
    # exactly as long as they agree.
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
    # The first computed state on the way to each. States that share it are kept in one group, since
    # another group would have to compute it again.
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
    """Rows of an unfinished plan, with the states that are alive and those that wait for a step."""

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
        # For every group and step, pairs of a waiting state and the state that it will become.
        self._waiting: list[dict[Any, list[tuple[int, int]]]] = []
        for _ in range(1 + max(groups.values(), default=0)):
            self._waiting.append(defaultdict(list))
        self._groups, self._cap = groups, cap
        self.start = tuple(state for state in range(prefixes.clean) if self._uses[state])
        """Clean states that are needed."""
        self.rows: list[Row] = []
        self._alive = self.peak = len(self.start)

    def run(self, order: Callable[[Any], Any]) -> None:
        """Write the rows: group by group, always the lowest step that states wait for."""
        self._arrive(self.start)
        for steps in self._waiting:
            while steps:
                step = min(steps, key=order)
                # Popped at once, since the calls may queue other states for the same step: a block
                # that is repeated waits for itself.
                for stacked in _in_pieces(steps.pop(step), self._cap):
                    self._call(step, stacked)

    def _call(self, step: Any, stacked: Sequence[tuple[int, int]]) -> None:
        """Execute a step on states that wait for it."""
        sources, results = zip(*stacked, strict=True)
        # A step needs its inputs until its results exist, so that both count at the peak.
        self.peak = max(self.peak, self._alive + len(results))
        done = self._release(sources)
        self.rows.append((RUN, plain(step), sources, results, done))
        self._alive += len(results) - len(done)
        self._arrive(results)

    def _arrive(self, arrived: Sequence[int]) -> None:
        """Queue the children of new states, then read the states that end a schedule."""
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
    """Divide items into pieces of at most `size`, or one piece if that is None."""
    size = size or max(1, len(items))
    return [items[i : i + size] for i in range(0, len(items), size)]
