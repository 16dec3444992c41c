"""Schedules: the tuple of blocks that is executed instead of `(0, 1, …, L-1)`.

A schedule is a value. Every edit is a function from tuple to tuple, and edits compose:

>>> swap(clean(4), 1)
(0, 2, 1, 3)
>>> swap(drop(clean(4), 1), 0)
(2, 0, 3)
"""

import random
import re

from robustness.refusal import Refusal

Step = int
"""What a schedule is made of: the index of a block in the model."""

Schedule = tuple[Step, ...]

_TOKEN = re.compile(r"(?P<first>\d{0,9})(?P<range>\.\.)?(?P<last>\d{0,9})")


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

    Interleaved, each step follows itself, as in the paper's example; contiguous, the span follows
    itself.

    >>> repeat(clean(4), 1, 2)
    (0, 1, 1, 2, 2, 3)
    >>> repeat(clean(4), 1, 2, contiguous=True)
    (0, 1, 2, 1, 2, 3)
    """
    _check_span(schedule, index, length)
    if times < 0:
        raise Refusal(f"a span cannot be repeated {times} times; 0 or more")
    span = schedule[index : index + length]
    repeated = (
        span * (times + 1) if contiguous else tuple(step for step in span for _ in range(times + 1))
    )
    return schedule[:index] + repeated + schedule[index + length :]


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


def check(schedule: Schedule, layers: int) -> Schedule:
    """Return the schedule if a model of `layers` blocks can execute it.

    Raises
    ------
    Refusal
        If it is empty or names a block that is not there.
    """
    if not schedule:
        raise Refusal("an empty schedule executes nothing; name at least one block, as in 0-1-2")
    for step in schedule:
        if not 0 <= step < layers:
            raise Refusal(f"there is no block {step}; the model's blocks are 0 to {layers - 1}")
    return tuple(schedule)


def to_text(schedule: Schedule) -> str:
    """Write a schedule as the paper does, with ranges where three or more blocks ascend.

    >>> to_text((0, 1, 2, 3, 5, 4, 6, 7))
    '0..3-5-4-6-7'
    """
    parts: list[str] = []
    start = 0
    for end in range(1, len(schedule) + 1):
        if end < len(schedule) and schedule[end] == schedule[end - 1] + 1:
            continue
        run = schedule[start:end]
        parts += [f"{run[0]}..{run[-1]}"] if len(run) > 2 else [str(step) for step in run]
        start = end
    return "-".join(parts)


def from_text(text: str, layers: int) -> Schedule:
    """Read a schedule: block indices and ranges, joined by `-`.

    A range runs up or down; an open one begins at block 0 or ends at the last block.

    >>> from_text("0..2-4-3-5..", 8)
    (0, 1, 2, 4, 3, 5, 6, 7)

    Raises
    ------
    Refusal
        If the text is empty, malformed (the message points at the character), or names a block
        that a model of `layers` blocks does not have.
    """
    steps: list[int] = []
    position = 0
    while position <= len(text):
        match = _TOKEN.match(text, position)
        if match is None or not (match["first"] or (match["range"] and match["last"])):
            raise _pointing(text, position, "a block index was expected")
        if match["last"] and not match["range"]:
            raise _pointing(text, match.start("last"), "'-' or '..' was expected")
        first = int(match["first"] or 0)
        last = int(match["last"] or layers - 1) if match["range"] else first
        for found, group in ((first, "first"), (last, "last")):
            if found >= layers:
                where = match.start(group) if match[group] else match.start()
                raise _pointing(
                    text, where, f"there is no block {found}; the blocks are 0 to {layers - 1}"
                )
        steps += range(first, last + 1) if first <= last else range(first, last - 1, -1)
        position = match.end()
        if position == len(text):
            return tuple(steps)
        if text[position] != "-":
            raise _pointing(text, position, "'-' or '..' was expected")
        position += 1
    raise _pointing(text, len(text), "a block index was expected")


def _pointing(text: str, position: int, problem: str) -> Refusal:
    if not text.strip():
        return Refusal("an empty schedule executes nothing; write blocks as in 0..3-5-4-6..")
    found = repr(text[position]) if position < len(text) else "the end"
    return Refusal(f"schedule {text!r}, character {position + 1} ({found}): {problem}")


def _check_span(schedule: Schedule, index: int, length: int) -> None:
    if length < 1:
        raise Refusal(f"a span of {length} steps is none; it takes at least 1")
    if not 0 <= index <= len(schedule) - length:
        there = f"0 to {len(schedule) - 1}" if schedule else "none"
        wanted = f"step {index}" if length == 1 else f"steps {index} to {index + length - 1}"
        raise Refusal(f"there is no {wanted}; the schedule's {len(schedule)} steps are {there}")
