"""Schedules: the tuple of steps that is executed instead of `(0, 1, …, L-1)`.

A schedule is a value. Every edit is a function from tuple to tuple, and edits compose:

>>> swap(clean(4), 1)
(0, 2, 1, 3)
>>> swap(drop(clean(4), 1), 0)
(2, 0, 3)

A step is mostly the index of a block. It may also be one sublayer of a block, `Attention(3)` or
`Mlp(3)`, or several steps on one input, `Parallel((3, 4, 5))`.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from operator import index
from typing import Any, TypeGuard

from robustness.errors import Refusal


@dataclass(frozen=True)
class Attention:
    """The attention of a block alone, with its norms: it adds what attention would add.

    It reads the residual stream that enters it. `Attention(3)` and then `Mlp(3)` are block 3 where
    blocks are sequential; where they are parallel, block 3's MLP would have read what enters the
    attention, and `Mlp(3)` reads what leaves it.
    """

    block: int


@dataclass(frozen=True)
class Mlp:
    """The MLP of a block alone, with its norms: it adds what the MLP would add.

    It reads the residual stream that enters it; see `Attention`.
    """

    block: int


@dataclass(frozen=True)
class Parallel:
    """Several steps on one residual stream; what leaves is the mean of what leaves each."""

    steps: "tuple[Step, ...]"


Step = int | Attention | Mlp | Parallel
"""What a schedule is made of: mostly the index of a block in the model."""

Schedule = tuple[Step, ...]

_TOKEN = re.compile(r"(?P<kind>[am]?)(?P<first>[0-9]*)(?P<range>\.\.)?(?P<last>[0-9]*)")

_DIGITS = 9
"""The most digits that are read as a block's index: Python makes no number of thousands."""

_SUBLAYERS: dict[str, type[Attention] | type[Mlp]] = {"a": Attention, "m": Mlp}

AS_IN = 'as in "0..3-5-4-6.."'

DEEPEST = 9
"""How deep steps on one input may be nested, as parentheses in a text."""

LONGEST = 10_000
"""The most blocks and sublayers that a schedule executes: 80 times those of the deepest models.

Each takes as long as a block of the clean run, and longer ones are slips, as in repeat-1x1000000.
"""

_SHOWN = 40
"""Characters of a text on either side of what is wrong in it that a message shows."""


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
    check_length(len(schedule) + length * times)
    span = schedule[index : index + length]
    repeated = (
        span * (times + 1) if contiguous else tuple(step for step in span for _ in range(times + 1))
    )
    return schedule[:index] + repeated + schedule[index + length :]


def drop_attention(schedule: Schedule, index: int) -> Schedule:
    """Leave out the attention of the block at `index`, and keep its MLP.

    >>> to_text(drop_attention(clean(4), 1))
    '0-m1-2-3'
    """
    return _replace(schedule, index, Mlp)


def drop_mlp(schedule: Schedule, index: int) -> Schedule:
    """Leave out the MLP of the block at `index`, and keep its attention.

    >>> to_text(drop_mlp(clean(4), 1))
    '0-a1-2-3'
    """
    return _replace(schedule, index, Attention)


def parallel(schedule: Schedule, index: int, length: int, *, times: int = 1) -> Schedule:
    """Execute `length` steps from `index` on on one input and average, `times` times over.

    >>> to_text(parallel(clean(6), 1, 3))
    '0-(1..3)-4-5'
    >>> to_text(parallel(clean(4), 1, 2, times=2))
    '0-(1+2)-(1+2)-3'
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


def leaves(step: Step) -> tuple[int | Attention | Mlp, ...]:
    """Return the blocks and sublayers that a step calls.

    >>> leaves(Parallel((3, Attention(4))))
    (3, Attention(block=4))
    """
    if isinstance(step, Parallel):
        return tuple(leaf for member in step.steps for leaf in leaves(member))
    return (step,)


def count_blocks(schedule: Schedule) -> int:
    """Return how many blocks and sublayers a schedule executes.

    >>> count_blocks((0, Parallel((1, 2))))
    3
    """
    return sum(1 if _is_block(step) else len(leaves(step)) for step in schedule)


def lowest_block(step: Step) -> int:
    """Return the index of the block that a step calls, or is a part of; of several, the lowest.

    >>> lowest_block(Parallel((3, Attention(2))))
    2
    """
    return min(leaf.block if isinstance(leaf, (Attention, Mlp)) else leaf for leaf in leaves(step))


def plain(step: Step) -> Any:
    """Return a step as it travels: an index, `("attention", 3)`, `("mlp", 3)`, `("parallel", …)`.

    >>> plain(Parallel((3, Attention(4))))
    ('parallel', (3, ('attention', 4)))
    """
    if isinstance(step, Parallel):
        return ("parallel", tuple(plain(member) for member in step.steps))
    if isinstance(step, (Attention, Mlp)):
        return (type(step).__name__.lower(), step.block)
    return step


def check(schedule: Schedule | str, layers: int) -> Schedule:
    """Return the schedule, which may be a text, if a model of `layers` blocks can execute it.

    >>> check("0-2..", 4)
    (0, 2, 3)

    Raises
    ------
    Refusal
        If it is empty, too long, names a block that is not there, or has something in it that is
        no step.
    """
    return _checked(schedule, layers, LONGEST, 0)[0]


def check_length(count: int, what: str = "a schedule") -> None:
    """Refuse what executes more blocks and sublayers than a schedule may."""
    if count > LONGEST:
        raise Refusal(
            f"{what} would execute {count:,} blocks, and {LONGEST:,} are the most: ask for fewer"
        )


def _checked(
    schedule: Sequence[Step] | str, layers: int, room: int, depth: int
) -> tuple[Schedule, int]:
    """Check steps that may execute so many blocks, and return them and how many they execute."""
    if isinstance(schedule, str):
        read = from_text(schedule, layers)
        return read, count_blocks(read)
    try:
        # A generator may have no end.
        steps = tuple(islice(schedule, room + 1))
    except TypeError:
        raise Refusal(f"{schedule!r} is no schedule: it takes a tuple or a text, {AS_IN}") from None
    if not steps:
        raise Refusal("an empty schedule executes nothing; name at least one block, as in 0-1-2")
    found: list[Step] = []
    count = 0
    for step in steps:
        if isinstance(step, Parallel):
            if depth == DEEPEST:
                raise Refusal(f"steps on one input are nested {DEEPEST} deep at most")
            inner, blocks = _checked(step.steps, layers, room - count, depth + 1)
            found.append(Parallel(inner))
        else:
            found.append(_leaf(step, layers))
            blocks = 1
        count += blocks
        if count > room:
            raise Refusal(f"a schedule executes {LONGEST:,} blocks at most: shorten it")
    return tuple(found), count


def _leaf(step: Any, layers: int) -> int | Attention | Mlp:
    sublayer = isinstance(step, (Attention, Mlp))
    try:
        found = index(step.block if sublayer else step)
    except TypeError:
        raise Refusal(
            f"{step!r} is no step of a schedule: it takes block indices, Attention, Mlp and "
            f"Parallel, or is a text as a whole, {AS_IN}"
        ) from None
    if not 0 <= found < layers:
        raise Refusal(f"there is no block {found}; the model's blocks are 0 to {layers - 1}")
    return step if sublayer else found


def to_text(schedule: Schedule) -> str:
    """Write a schedule as the paper does, with ranges where three or more blocks ascend.

    A sublayer is `a3` or `m3`; what is executed on one input stands in parentheses, joined by `+`.

    >>> to_text((0, 1, 2, 3, 5, 4, 6, 7))
    '0..3-5-4-6-7'
    >>> to_text((0, Mlp(1), Parallel((2, 3)), Parallel((4, 5, 6, Attention(7)))))
    '0-m1-(2+3)-(4..6+a7)'
    """
    return "-".join(_texts(schedule))


def _texts(steps: Sequence[Step]) -> list[str]:
    texts: list[str] = []
    start = 0
    for end in range(1, len(steps) + 1):
        if end < len(steps) and _follows(steps[end - 1], steps[end]):
            continue
        run = steps[start:end]
        texts += [f"{run[0]}..{run[-1]}"] if len(run) > 2 else [_text(step) for step in run]
        start = end
    return texts


def _follows(step: Step, following: Step) -> bool:
    return _is_block(step) and _is_block(following) and following == step + 1


def _text(step: Step) -> str:
    if isinstance(step, Parallel):
        return f"({'+'.join(_texts(step.steps))})"
    if isinstance(step, (Attention, Mlp)):
        return f"{type(step).__name__[0].lower()}{step.block}"
    return str(step)


def from_text(text: str, layers: int) -> Schedule:
    """Read a schedule: block indices and ranges, joined by `-`.

    A range runs up or down; an open one begins at block 0 or ends at the last block, and `..` is
    all of them. `a3` and `m3`
    are the attention and the MLP of block 3; `(4+5+6)`, or `(4..6)`, is blocks on one input.

    >>> from_text("0..2-4-3-5..", 8)
    (0, 1, 2, 4, 3, 5, 6, 7)
    >>> from_text("0-a1-(2+m3)", 4)
    (0, Attention(block=1), Parallel(steps=(2, Mlp(block=3))))

    Raises
    ------
    Refusal
        If the text is empty, malformed (the message points at the character), too long, or names a
        block that a model of `layers` blocks does not have.
    """
    # What is open: the schedule itself, and every parenthesis that is not closed yet.
    groups: list[list[Step]] = [[]]
    position = count = 0
    while True:
        while text.startswith("(", position):
            if len(groups) > DEEPEST:
                raise _pointing(text, position, f"parentheses are nested {DEEPEST} deep at most")
            groups.append([])
            position += 1
        begin = position
        found, position, more = _read(text, begin, layers)
        count += len(found)
        if count > LONGEST:
            raise _pointing(text, begin, f"{LONGEST:,} blocks are executed at most")
        groups[-1] += found
        while len(groups) > 1 and text.startswith(")", position):
            members = groups.pop()
            groups[-1].append(Parallel(tuple(members)))
            position, more = position + 1, False
        inside = len(groups) > 1
        if position == len(text) and not inside:
            return tuple(groups[0])
        if not text.startswith("+" if inside else "-", position):
            wanted = [*(("'+'", "')'") if inside else ("'-'",)), *(("'..'",) if more else ())]
            wanted = [", ".join(wanted[:-1]), wanted[-1]] if len(wanted) > 1 else wanted
            raise _pointing(text, position, f"{' or '.join(wanted)} was expected")
        position += 1


def layers_from_text(text: str, layers: int) -> tuple[int, ...]:
    """Read layers as a schedule of whole blocks is read.

    Raises
    ------
    Refusal
        As for `from_text`, and if a step is no block.
    """
    if not text.strip():
        raise Refusal("no layer is named: write layers as in 0..3-7")
    try:
        steps = from_text(text, layers)
    except Refusal as refusal:
        raise Refusal(str(refusal).replace("schedule", "layers", 1)) from None
    found = tuple(step for step in steps if _is_block(step))
    if len(found) < len(steps):
        raise Refusal(f"layers are whole blocks, as in 0..3-7, not {excerpt(text)!r}")
    return found


def _read(text: str, position: int, layers: int) -> tuple[list[Step], int, bool]:
    """Read blocks or a sublayer; return them, where they end, and whether `..` could follow."""
    match = _TOKEN.match(text, position)
    if match is None or not (match["first"] or match["range"]):
        where = match.end("kind") if match else position
        raise _pointing(text, where, "a block index was expected, as in 3, a3, m3 or (3+4)")
    if match["kind"] and (match["range"] or match["last"]):
        raise _pointing(text, match.end("first"), "a sublayer is of one block, as in a3-a4")
    if match["last"] and not match["range"]:
        raise _pointing(text, match.start("last"), "'-' or '..' was expected")
    for group in ("first", "last"):
        digits = match[group].lstrip("0")
        if len(digits) > _DIGITS or int(digits or 0) >= layers:
            raise _pointing(
                text,
                match.start(group),
                f"there is no block {excerpt(digits)}; the blocks are 0 to {layers - 1}",
            )
    first = int(match["first"].lstrip("0") or 0)
    last = int(match["last"].lstrip("0") or 0) if match["last"] else layers - 1
    last = last if match["range"] else first
    if match["kind"]:
        return [_SUBLAYERS[match["kind"]](first)], match.end(), False
    span = range(first, last + 1) if first <= last else range(first, last - 1, -1)
    return list(span), match.end(), not match["range"]


def _pointing(text: str, position: int, problem: str) -> Refusal:
    if not text.strip():
        return Refusal("an empty schedule executes nothing; write blocks as in 0..3-5-4-6..")
    found = repr(text[position]) if position < len(text) else "the end"
    shown = excerpt(text, position)
    return Refusal(f"schedule {shown!r}, character {position + 1} ({found}): {problem}")


def excerpt(text: str, position: int = 0) -> str:
    """Return what stands around a position of a text, or all of it if it is not long.

    >>> excerpt("0-1")
    '0-1'
    """
    first, last = max(0, position - _SHOWN), position + _SHOWN
    before, after = "…" if first else "", "…" if last < len(text) else ""
    return f"{before}{text[first:last]}{after}"


def _is_block(step: Step) -> TypeGuard[int]:
    return not isinstance(step, (Attention, Mlp, Parallel))


def _replace(schedule: Schedule, index: int, sublayer: type[Attention] | type[Mlp]) -> Schedule:
    _check_span(schedule, index, 1)
    step = schedule[index]
    if not _is_block(step):
        raise Refusal(f"step {index} is {_text(step)}, and only a whole block has two sublayers")
    return (*schedule[:index], sublayer(step), *schedule[index + 1 :])


def _check_span(schedule: Schedule, index: int, length: int) -> None:
    if length < 1:
        raise Refusal(f"a span of {length} steps is none; it takes at least 1")
    if not 0 <= index <= len(schedule) - length:
        there = f"0 to {len(schedule) - 1}" if schedule else "none"
        wanted = (
            f"is no step {index}"
            if length == 1
            else f"are no steps {index} to {index + length - 1}"
        )
        raise Refusal(f"there {wanted}; the schedule's {len(schedule)} steps are {there}")
