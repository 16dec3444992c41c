"""Passes: a plan as forward passes of the model in which some blocks are left out.

A pass begins from a state, runs consecutive blocks as the model itself runs them, and leaves all
others out. Where every value that enters or leaves a module costs much, as between a trace and
weights in another process, passes take fewer of them than calls of single blocks: a drop of one
block is one state in and one state out, however many blocks follow it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from robustness.schedules.plan import RUN, Plan

Pass = tuple[int, int, int, tuple[tuple[int, int], ...], tuple[Any, ...], tuple[int, ...]]
"""One pass: `(source, first, stop, kept, ends, done)`.

It begins from the state `source` and runs the blocks from `first` to before `stop`. `kept` are
pairs of a block and the number of the state that it leaves and that later passes begin from; `ends`
the indices of the schedules that end in what leaves the last block, if the pass runs that or begins
behind it; `done` the states that no later pass begins from.
"""


def suits(plan: Plan) -> bool:
    """Whether a plan consists of whole blocks, one after the other, and so of passes."""
    return all(isinstance(step, int) for kind, step, *_ in plan.rows if kind == RUN)


def compile_passes(plan: Plan, layers: int) -> tuple[Pass, ...]:
    """Decompose a plan into passes; each block of a distinct prefix runs once, as in the plan.

    Parameters
    ----------
    plan : Plan
        Plan of schedules of whole blocks.
    layers : int
        Number of blocks of the model.

    Returns
    -------
    tuple of Pass
        Passes in an order in which few states wait. The clean pass, which comes before them, keeps
        the states of which they begin.
    """
    following, ends = _tree(plan)
    # Pairs of a state and the step that is taken from it, or `layers` where a schedule ends there.
    waiting: list[tuple[int, int]] = []
    for state in reversed(plan.clean_states):
        waiting += _beginnings(state, following, ends, layers)
    passes = []
    while waiting:
        source, first = waiting.pop()
        state, block, kept = source, first, []
        while block < layers and block in following[state]:
            state = following[state][block]
            left = _beginnings(state, following, ends, layers, block + 1)
            if left:
                kept.append((block, state))
                waiting += left
            block += 1
        read = ends.get(state, ()) if block == layers else ()
        passes.append((source, first, block, tuple(kept), tuple(read)))
    last = {source: number for number, (source, *_) in enumerate(passes)}
    rows: list[Pass] = []
    for number, row in enumerate(passes):
        rows.append((*row, (row[0],) if last[row[0]] == number else ()))
    return tuple(rows)


def takes_entry(passes: Sequence[Pass]) -> bool:
    """Whether a pass begins from what enters the first block, or in its place."""
    return any(0 in (source, first) for source, first, *_ in passes)


def _tree(plan: Plan) -> tuple[dict[int, dict[int, int]], dict[int, tuple[Any, ...]]]:
    """Return the states that follow each computed or clean state by step, and where runs end."""
    following: dict[int, dict[int, int]] = defaultdict(dict)
    ends: dict[int, tuple[Any, ...]] = {}
    for kind, step, sources, results, _ in plan.rows:
        for source, result in zip(sources, results, strict=True):
            if kind == RUN:
                following[source][step] = result
            else:
                ends[source] = result
    return following, ends


def _beginnings(
    state: int,
    following: dict[int, dict[int, int]],
    ends: dict[int, tuple[Any, ...]],
    layers: int,
    behind: int | None = None,
) -> list[tuple[int, int]]:
    """Return passes that begin from a state, but for what one that is before `behind` goes on to.

    A pass goes on to the next block, and reads what ends behind the last.
    """
    first = [step for step in following[state] if step != behind]
    # What ends behind the last block is read in the pass that runs it.
    if state in ends and behind != layers:
        first.append(layers)
    return [(state, step) for step in sorted(first, reverse=True)]
