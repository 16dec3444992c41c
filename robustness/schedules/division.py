"""Division of many schedules into groups of about equal cost, one after the other in their order.

Each group is a plan of its own, from a clean run of its own. Prefixes that two groups share are
computed in both.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

from robustness.schedules.plan import Plan, compile_plan
from robustness.schedules.schedule import Schedule
from robustness.schedules.steps import leaves

READING = 1
"""Cost of reading a final state, in calls of a block: what the head takes of a large model."""


@dataclass(frozen=True, eq=False)
class Division:
    """Schedules that may be divided into groups."""

    schedules: Sequence[Schedule]
    clean: Schedule
    """The clean schedule."""
    per_group: int
    """Maximum number of schedules whose states wait at once, as in `compile_plan`."""

    def groups(self, count: int) -> list[slice]:
        """Return at most this number of groups, none of them empty.

        Groups of twice the number are those of the number, each of them divided.

        >>> clean = (0, 1, 2)
        >>> Division([(1, 2), (0, 2), (0, 1), (2, 1, 0)], clean, 9).groups(2)
        [slice(0, 2, None), slice(2, 4, None)]
        """
        # In whole numbers, so that no bound of a number is missed by its double.
        bounds = {0, len(self.schedules)}
        bounds |= {self._reach(part, count) for part in range(1, count)}
        return [slice(*pair) for pair in pairwise(sorted(bounds))]

    def after(self, done: int, count: int) -> slice:
        """Return the group that is next when the first schedules are done."""
        group = next(group for group in self.groups(count) if group.stop > done)
        return slice(max(group.start, done), group.stop)

    def plan(self, cap: int | None = None, group: slice | None = None) -> Plan:
        """Compile a group, or all, into a plan that stacks at most `cap` states."""
        chosen = self.schedules if group is None else self.schedules[group]
        return compile_plan(chosen, self.clean, cap=cap, per_group=self.per_group)

    def _reach(self, part: int, count: int) -> int:
        """Return how many schedules have a share `part / count` of the cost, or a little more."""
        total = self._costs[-1]
        return bisect_left(self._costs, -(-total * part // count)) + 1

    @cached_property
    def _costs(self) -> list[int]:
        """Cost of the first schedules, for every number of them, in calls of blocks."""
        known: dict[tuple[int, Any], int] = {}
        for depth, step in enumerate(self.clean):
            known[depth, step] = depth + 1
        costs = []
        for schedule in self.schedules:
            state, cost = 0, READING
            for step in schedule:
                if (state, step) not in known:
                    known[state, step] = len(known) + 1
                    cost += len(leaves(step))
                state = known[state, step]
            costs.append(cost)
        return list(accumulate(costs))
