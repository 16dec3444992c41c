"""Schedules: tuples of steps that are executed instead of `(0, 1, …, L-1)`.

A schedule is a value. Every edit is a function from tuple to tuple, and edits compose:

>>> swap(clean(4), 1)
(0, 2, 1, 3)
>>> swap(drop(clean(4), 1), 0)
(2, 0, 3)

Most steps are indices of blocks; the others are in `robustness.schedules.steps`.
"""

import random

from robustness.errors import Refusal
from robustness.schedules.steps import Attention, Mlp, Parallel, Step, is_block, leaves

Schedule = tuple[Step, ...]
"""Steps in the order of their execution."""

DEEPEST = 9
"""Maximum depth of nested steps on one input, or of parentheses in a text."""

LONGEST = 10_000
"""Maximum number of blocks and sublayers in a schedule: 80 times those of the deepest models.

Each takes as long as a block of the clean run. Longer schedules are typing errors, such as
repeat-1x1000000.
"""


def clean(layers: int) -> Schedule:
    """Return the schedule of the unmodified model.

    >>> clean(4)
    (0, 1, 2, 3)
    """
    return tuple(range(layers))


def drop(schedule: Schedule, index: int) -> Schedule:
    """Leave out the step at `index`.

    >>> drop(clean(4), 1)
    (0, 2, 3)
    """
    return skip_span(schedule, index, 1)


def skip_span(schedule: Schedule, index: int, length: int) -> Schedule:
    """Leave out `length` steps from `index` on.

    >>> skip_span(clean(5), 1, 3)
    (0, 4)
    """
    _check_span(schedule, index, length)
    return schedule[:index] + schedule[index + length :]


def swap(schedule: Schedule, index: int, distance: int = 1) -> Schedule:
    """Exchange the step at `index` with the one `distance` later.

    >>> swap(clean(5), 1)
    (0, 2, 1, 3, 4)
    >>> swap(clean(5), 1, distance=3)
    (0, 4, 2, 3, 1)
    """
    _check_span(schedule, index, distance + 1)
    steps = list(schedule)
    steps[index], steps[index + distance] = steps[index + distance], steps[index]
    return tuple(steps)


def repeat(
    schedule: Schedule, index: int, length: int = 1, *, times: int = 1, contiguous: bool = False
) -> Schedule:
    """Execute `length` steps from `index` on `times` extra times.

    By default each step of the span is repeated before the next, as in the paper's example. With
    `contiguous` the whole span is repeated.

    >>> repeat(clean(4), 1, 2)
    (0, 1, 1, 2, 2, 3)
    >>> repeat(clean(4), 1, 2, contiguous=True)
    (0, 1, 2, 1, 2, 3)
    """
    _check_span(schedule, index, length)
    if times < 0:
        raise Refusal(f"a span cannot be repeated {times} times; 0 or more")
    check_length(len(schedule) + length * times)
    span = schedule[index : index + length]
    if contiguous:
        repeated = list(span) * (times + 1)
    else:
        repeated = []
        for step in span:
            repeated += [step] * (times + 1)
    return (*schedule[:index], *repeated, *schedule[index + length :])


def drop_attention(schedule: Schedule, index: int) -> Schedule:
    """Leave out the attention of the block at `index`, and keep its MLP.

    >>> drop_attention(clean(4), 1)
    (0, Mlp(block=1), 2, 3)
    """
    return _replace(schedule, index, Mlp)


def drop_mlp(schedule: Schedule, index: int) -> Schedule:
    """Leave out the MLP of the block at `index`, and keep its attention.

    >>> drop_mlp(clean(4), 1)
    (0, Attention(block=1), 2, 3)
    """
    return _replace(schedule, index, Attention)


def parallel(schedule: Schedule, index: int, length: int, *, times: int = 1) -> Schedule:
    """Execute `length` steps from `index` on on one input and average their outputs.

    With `times`, the result is the input of the same steps again.

    >>> parallel(clean(6), 1, 3)
    (0, Parallel(steps=(1, 2, 3)), 4, 5)
    >>> len(parallel(clean(4), 1, 2, times=2))
    4
    """
    _check_span(schedule, index, length)
    if times < 1:
        raise Refusal(f"a span cannot be executed {times} times; 1 or more")
    check_length(len(schedule) + length * (times - 1))
    span = (Parallel(schedule[index : index + length]),)
    return schedule[:index] + span * times + schedule[index + length :]


def repeat_middle(schedule: Schedule, index: int, length: int) -> Schedule:
    """Execute the middle one of `length` steps from `index` on in the place of each of them.

    >>> repeat_middle(clean(6), 1, 4)
    (0, 2, 2, 2, 2, 5)
    """
    _check_span(schedule, index, length)
    middle = schedule[index + (length - 1) // 2]
    return schedule[:index] + (middle,) * length + schedule[index + length :]


def reverse(schedule: Schedule, index: int = 0, length: int | None = None) -> Schedule:
    """Reverse the order of `length` steps from `index` on, or of all that follow.

    >>> reverse(clean(5), 1, 3)
    (0, 3, 2, 1, 4)
    """
    length = len(schedule) - index if length is None else length
    _check_span(schedule, index, length)
    span = schedule[index : index + length]
    return schedule[:index] + span[::-1] + schedule[index + length :]


def shuffle(
    schedule: Schedule, index: int = 0, length: int | None = None, *, seed: int
) -> Schedule:
    """Put `length` steps from `index` on, or all that follow, into a seeded random order."""
    length = len(schedule) - index if length is None else length
    _check_span(schedule, index, length)
    span = list(schedule[index : index + length])
    random.Random(seed).shuffle(span)
    return schedule[:index] + tuple(span) + schedule[index + length :]


def count_blocks(schedule: Schedule) -> int:
    """Return the number of blocks and sublayers that a schedule executes.

    >>> count_blocks((0, Parallel((1, 2))))
    3
    """
    # Sweeps count millions of steps, most of which are blocks: no tuple is built for these.
    return sum(1 if is_block(step) else len(leaves(step)) for step in schedule)


def check_length(count: int, what: str = "a schedule") -> None:
    """Refuse more blocks and sublayers than a schedule may execute."""
    if count > LONGEST:
        raise Refusal(
            f"{what} would execute {count:,} blocks, and {LONGEST:,} are the most: ask for fewer"
        )


def _replace(schedule: Schedule, index: int, sublayer: type[Attention] | type[Mlp]) -> Schedule:
    """Execute one sublayer of the block at `index` in its place."""
    _check_span(schedule, index, 1)
    step = schedule[index]
    if not is_block(step):
        raise Refusal(f"step {index} is {step}, and only a whole block has two sublayers")
    return (*schedule[:index], sublayer(step), *schedule[index + 1 :])


def _check_span(schedule: Schedule, index: int, length: int) -> None:
    """Refuse a span that does not lie within a schedule."""
    if length < 1:
        raise Refusal(f"a span of {length} steps is none; it takes at least 1")
    if not 0 <= index <= len(schedule) - length:
        missing = f"is no step {index}"
        if length > 1:
            missing = f"are no steps {index} to {index + length - 1}"
        steps = f"0 to {len(schedule) - 1}" if schedule else "none"
        raise Refusal(f"there {missing}; the schedule's {len(schedule)} steps are {steps}")
