"""Validation: whether a model can execute a schedule, which may be a text."""

from collections.abc import Sequence
from itertools import islice
from operator import index
from typing import Any

from robustness.errors import Refusal
from robustness.schedules.notation import AS_IN, from_text
from robustness.schedules.schedule import (
    DEEPEST,
    LONGEST,
    Attention,
    Mlp,
    Parallel,
    Schedule,
    Step,
    count_blocks,
)


def check(schedule: Schedule | str, layers: int) -> Schedule:
    """Return the schedule, which may be a text, if a model of `layers` blocks can execute it.

    >>> check("0-2..", 4)
    (0, 2, 3)

    Raises
    ------
    Refusal
        If the schedule is empty, too long, names a block that does not exist, or contains something
        that is no step.
    """
    return _checked(schedule, layers, LONGEST, 0)[0]


def _checked(
    schedule: Sequence[Step] | str, layers: int, longest: int, depth: int
) -> tuple[Schedule, int]:
    """Return steps, and the number of blocks that they execute, which is `longest` at most."""
    if isinstance(schedule, str):
        parsed = from_text(schedule, layers)
        return parsed, count_blocks(parsed)
    try:
        # A generator may be endless.
        steps = tuple(islice(schedule, longest + 1))
    except TypeError:
        raise Refusal(f"{schedule!r} is no schedule: it takes a tuple or a text, {AS_IN}") from None
    if not steps:
        raise Refusal("an empty schedule executes nothing; name at least one block, as in 0-1-2")
    checked: list[Step] = []
    count = 0
    for step in steps:
        if isinstance(step, Parallel):
            if depth == DEEPEST:
                raise Refusal(f"steps on one input are nested {DEEPEST} deep at most")
            inner, blocks = _checked(step.steps, layers, longest - count, depth + 1)
            checked.append(Parallel(inner))
        else:
            checked.append(_checked_leaf(step, layers))
            blocks = 1
        count += blocks
        if count > longest:
            raise Refusal(f"a schedule executes {LONGEST:,} blocks at most: shorten it")
    return tuple(checked), count


def _checked_leaf(step: Any, layers: int) -> int | Attention | Mlp:
    """Return a block or a sublayer if the model has it."""
    sublayer = isinstance(step, (Attention, Mlp))
    try:
        # `index` accepts integers of NumPy and refuses floats, which `int` would round.
        block = index(step.block if sublayer else step)
    except TypeError:
        raise Refusal(
            f"{step!r} is no step of a schedule: it takes block indices, Attention, Mlp and "
            f"Parallel, or is a text as a whole, {AS_IN}"
        ) from None
    if not 0 <= block < layers:
        raise Refusal(f"there is no block {block}; the model's blocks are 0 to {layers - 1}")
    return step if sublayer else block
