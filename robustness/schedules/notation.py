"""Notation of schedules, as in the paper: from schedules to text, and back.

>>> to_text((0, 1, 2, 3, 5, 4, 6, 7))
'0..3-5-4-6-7'
>>> from_text("0..2-4-3-5..", 8)
(0, 1, 2, 4, 3, 5, 6, 7)
"""

import math
import re
from collections.abc import Sequence

from robustness.errors import Refusal
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
    is_block,
)

_TOKEN = re.compile(r"(?P<kind>[am]?)(?P<first>[0-9]*)(?P<range>\.\.)?(?P<last>[0-9]*)")

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", re.IGNORECASE)

_NUMBER_LENGTH = 40
"""Maximum number of characters of a factor, of which any takes 24."""

_DIGITS = 9
"""Maximum number of digits of a block's index: Python refuses to convert thousands of digits."""

_SUBLAYERS: dict[str, type[Attention] | type[Mlp]] = {"a": Attention, "m": Mlp}

AS_IN = 'as in "0..3-5-4-6.."'
"""Example of a schedule as text, for messages."""

_SHOWN = 40
"""Number of characters that a message shows on either side of an error in a text."""


def to_text(schedule: Schedule) -> str:
    """Write a schedule as the paper does, with ranges where three or more blocks ascend.

    A sublayer is `a3` or `m3`. Steps on one input stand in parentheses, joined by `+`. What a block
    or a sublayer adds is followed by its factor, `5*0.5`, or by the blocks of its map, `m3~4..7`. A
    scale of the stream is `*1.05`, and a map of the stream `~4..7`.

    >>> to_text((0, 1, 2, 3, 5, 4, 6, 7))
    '0..3-5-4-6-7'
    >>> to_text((0, Mlp(1), Parallel((2, 3)), Parallel((4, 5, 6, Attention(7)))))
    '0-m1-(2+3)-(4..6+a7)'
    >>> to_text((0, Scaled(1, 0.5), StreamScale(1.05), Mapped(Mlp(2), 3, 4), StreamMap(5, 5), 6))
    '0-1*0.5-*1.05-m2~3..4-~5-6'
    """
    return "-".join(_texts(schedule))


def _texts(steps: Sequence[Step]) -> list[str]:
    """Return the text of every step, or of every range of three or more blocks."""
    texts: list[str] = []
    start = 0
    for end in range(1, len(steps) + 1):
        if end < len(steps) and _follows(steps[end - 1], steps[end]):
            continue
        run = steps[start:end]
        texts += [f"{run[0]}..{run[-1]}"] if len(run) > 2 else map(_text, run)
        start = end
    return texts


def _follows(step: Step, following: Step) -> bool:
    return is_block(step) and is_block(following) and following == step + 1


def _text(step: Step) -> str:
    if isinstance(step, Parallel):
        return f"({'+'.join(_texts(step.steps))})"
    return str(step)


def from_text(text: str, layers: int) -> Schedule:
    """Read a schedule: block indices and ranges, joined by `-`.

    A range runs up or down. An open range begins at block 0 or ends at the last block, and `..` is
    all blocks. `a3` and `m3` are the attention and the MLP of block 3; `(4+5+6)`, or `(4..6)`, is
    blocks on one input; `5*0.5` and `m3~4..7` are steps of which what they add is multiplied by a
    factor or a fitted matrix; `*1.05` and `~4..7` do the same to the stream.

    >>> from_text("0..2-4-3-5..", 8)
    (0, 1, 2, 4, 3, 5, 6, 7)
    >>> from_text("0-a1-(2+m3)", 4)
    (0, Attention(block=1), Parallel(steps=(2, Mlp(block=3))))
    >>> from_text("0-*1.05-~1..2-3*0.5", 4)
    (0, StreamScale(factor=1.05), StreamMap(first=1, last=2), Scaled(step=3, factor=0.5))

    Raises
    ------
    Refusal
        If the text is empty, malformed (the message points at the character), too long, or names a
        block that a model of `layers` blocks does not have.
    """
    # The steps of the schedule, and of every parenthesis that is not closed yet.
    groups: list[list[Step]] = [[]]
    position = count = 0
    while True:
        while text.startswith("(", position):
            if len(groups) > DEEPEST:
                raise _pointing(text, position, f"parentheses are nested {DEEPEST} deep at most")
            groups.append([])
            position += 1
        begin = position
        steps, position, may_be_range = _read(text, begin, layers)
        count += len(steps)
        if count > LONGEST:
            raise _pointing(text, begin, f"{LONGEST:,} blocks are executed at most")
        groups[-1] += steps
        while len(groups) > 1 and text.startswith(")", position):
            members = groups.pop()
            groups[-1].append(Parallel(tuple(members)))
            position, may_be_range = position + 1, False
        inside = len(groups) > 1
        if position == len(text) and not inside:
            return tuple(groups[0])
        if not text.startswith("+" if inside else "-", position):
            expected = _expected(inside, may_be_range)
            raise _pointing(text, position, f"{expected} was expected")
        position += 1


def _expected(inside: bool, may_be_range: bool) -> str:
    """Return the characters that may follow a step, as words of a message."""
    characters = ["'+'", "')'"] if inside else ["'-'"]
    if may_be_range:
        characters.append("'..'")
    *others, last = characters
    return f"{', '.join(others)} or {last}" if others else last


def layers_from_text(text: str, layers: int) -> tuple[int, ...]:
    """Read layers from a text that is written like a schedule of whole blocks.

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
    blocks = tuple(filter(is_block, steps))
    if len(blocks) < len(steps):
        raise Refusal(f"layers are whole blocks, as in 0..3-7, not {excerpt(text)!r}")
    return blocks


def _read(text: str, position: int, layers: int) -> tuple[list[Step], int, bool]:
    """Read one step or a range; return the steps, where they end, and whether `..` could follow."""
    if text.startswith("*", position):
        factor, end = _read_factor(text, position + 1)
        if not factor:
            raise _pointing(text, position + 1, "a stream times 0 is none; leave it as it is")
        return [StreamScale(factor)], end, False
    if text.startswith("~", position):
        first, last, end = _read_span(text, position + 1, layers)
        return [StreamMap(first, last)], end, False
    leaves, end, may_be_range = _read_blocks(text, position, layers)
    changed = text[end : end + 1]
    if changed not in ("*", "~"):
        return list(leaves), end, may_be_range
    if len(leaves) > 1:
        raise _pointing(text, end, f"'{changed}' is of one block or sublayer, as in 5{changed}")
    if changed == "*":
        factor, end = _read_factor(text, end + 1)
        return [Scaled(leaves[0], factor)], end, False
    first, last, end = _read_span(text, end + 1, layers)
    return [Mapped(leaves[0], first, last)], end, False


def _read_factor(text: str, position: int) -> tuple[float, int]:
    """Read a factor, and return it and where it ends."""
    match = _NUMBER.match(text, position)
    if match is None:
        raise _pointing(text, position, "a factor was expected, as in 5*0.5 or *1.05")
    if len(match[0]) > _NUMBER_LENGTH or not math.isfinite(float(match[0])):
        raise _pointing(text, position, "a factor is a finite number, as in 5*0.5 or *1.05")
    return float(match[0]), match.end()


def _read_span(text: str, position: int, layers: int) -> tuple[int, int, int]:
    """Read the blocks that a map stands for; return the first, the last, and where they end."""
    match = _TOKEN.match(text, position)
    if match is None or match["kind"] or not (match["first"] or match["range"]):
        raise _pointing(text, position, "the blocks of a map were expected, as in ~4..7")
    first = _index(text, match, "first", 0, layers)
    last = _index(text, match, "last", layers - 1, layers) if match["range"] else first
    if last < first:
        raise _pointing(text, position, "a map is of ascending blocks, as in ~4..7")
    return first, last, match.end()


def _read_blocks(text: str, position: int, layers: int) -> tuple[Sequence[Leaf], int, bool]:
    """Read blocks or a sublayer; return them, where they end, and whether `..` could follow."""
    match = _TOKEN.match(text, position)
    if match is None or not (match["first"] or match["range"]):
        where = match.end("kind") if match else position
        raise _pointing(text, where, "a block index was expected, as in 3, a3, m3 or (3+4)")
    if match["kind"] and (match["range"] or match["last"]):
        raise _pointing(text, match.end("first"), "a sublayer is of one block, as in a3-a4")
    if match["last"] and not match["range"]:
        raise _pointing(text, match.start("last"), "'-' or '..' was expected")
    first = _index(text, match, "first", 0, layers)
    last = _index(text, match, "last", layers - 1, layers)
    if match["kind"]:
        return [_SUBLAYERS[match["kind"]](first)], match.end(), False
    if not match["range"]:
        return [first], match.end(), True
    descends = last < first
    return (
        list(range(first, last - 1, -1) if descends else range(first, last + 1)),
        match.end(),
        False,
    )


def _index(text: str, match: re.Match[str], group: str, default: int, layers: int) -> int:
    """Return the block index in a group of a match, or a default without one."""
    digits = match[group].lstrip("0")
    if len(digits) > _DIGITS or int(digits or 0) >= layers:
        problem = f"there is no block {excerpt(digits)}; the blocks are 0 to {layers - 1}"
        raise _pointing(text, match.start(group), problem)
    return int(digits or 0) if match[group] else default


def _pointing(text: str, position: int, problem: str) -> Refusal:
    """Return the refusal of a text, with the character at which it is wrong."""
    if not text.strip():
        return Refusal("an empty schedule executes nothing; write blocks as in 0..3-5-4-6..")
    character = repr(text[position]) if position < len(text) else "the end"
    shown = excerpt(text, position)
    return Refusal(f"schedule {shown!r}, character {position + 1} ({character}): {problem}")


def excerpt(text: str, position: int = 0) -> str:
    """Return the characters around a position of a text, or all of a short text.

    >>> excerpt("0-1")
    '0-1'
    """
    first, last = max(0, position - _SHOWN), position + _SHOWN
    before, after = "…" if first else "", "…" if last < len(text) else ""
    return f"{before}{text[first:last]}{after}"
