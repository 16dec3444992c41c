"""Validation: whether a model can execute a schedule, which may be a text."""

import math
from collections.abc import Sequence
from itertools import islice
from operator import index
from typing import Any

from robustness.errors import Refusal
from robustness.schedules.notation import AS_IN, from_text
from robustness.schedules.schedule import DEEPEST, LONGEST, Schedule
from robustness.schedules.steps import (
    Attention,
    Leaf,
    Mapped,
    Mlp,
    Parallel,
    Scaled,
    Step,
    StreamMap,
    StreamScale,
    leaves,
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
        return parsed, sum(max(1, len(leaves(step))) for step in parsed)
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
            checked.append(_checked_step(step, layers))
            blocks = 1
        count += blocks
        if count > longest:
            raise Refusal(f"a schedule executes {LONGEST:,} blocks at most: shorten it")
    return tuple(checked), count


def _checked_step(step: Any, layers: int) -> Step:
    """Return a step that is no steps on one input, if the model has its blocks."""
    if isinstance(step, StreamScale):
        return StreamScale(_checked_factor(step, stream=True))
    if isinstance(step, Scaled):
        return Scaled(_checked_leaf(step.step, layers), _checked_factor(step))
    if isinstance(step, StreamMap):
        return StreamMap(*_checked_span(step, layers))
    if isinstance(step, Mapped):
        return Mapped(_checked_leaf(step.step, layers), *_checked_span(step, layers))
    return _checked_leaf(step, layers)


def _checked_factor(step: Scaled | StreamScale, *, stream: bool = False) -> float:
    """Return the factor of a step if it is a finite number, of the stream also none that is 0."""
    try:
        factor = float(step.factor)
    except (TypeError, ValueError, OverflowError):
        factor = math.nan
    if not math.isfinite(factor) or (stream and not factor):
        raise Refusal(
            f"{step.factor!r} is no factor: it is a finite number, and that of the stream not 0"
        )
    return factor


def _checked_span(step: StreamMap | Mapped, layers: int) -> tuple[int, int]:
    """Return the first and the last block that a fitted map stands for."""
    first, last = _checked_block(step.first, layers), _checked_block(step.last, layers)
    if last < first:
        raise Refusal(f"a map is of ascending blocks, as ~{last}..{first}, not ~{first}..{last}")
    return first, last


def _checked_leaf(step: Any, layers: int) -> Leaf:
    """Return a block or a sublayer if the model has it."""
    if isinstance(step, (Attention, Mlp)):
        return type(step)(_checked_block(step.block, layers))
    return _checked_block(step, layers)


def _checked_block(step: Any, layers: int) -> int:
    """Return the index of a block if the model has it."""
    try:
        # `index` accepts integers of NumPy and refuses floats, which `int` would round.
        block = index(step)
    except TypeError:
        raise Refusal(
            f"{step!r} is no step of a schedule: it takes block indices, Attention, Mlp, Scaled, "
            f"StreamScale, StreamMap, Mapped and Parallel, or is a text as a whole, {AS_IN}"
        ) from None
    if not 0 <= block < layers:
        raise Refusal(f"there is no block {block}; the model's blocks are 0 to {layers - 1}")
    return block
