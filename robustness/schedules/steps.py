"""Steps of schedules: what is done to the residual stream at one place of the order.

Most steps are indices of blocks. The others are records:

- one sublayer of a block, `Attention(3)` or `Mlp(3)`;
- several steps on one input, `Parallel((3, 4, 5))`;
- what a block or a sublayer adds, times a factor, `Scaled(5, 0.5)`, or through a fitted matrix,
  `Mapped(Mlp(3), 4, 7)`;
- the stream times a factor, `StreamScale(1.05)`, or through a fitted map, `StreamMap(4, 7)`.

Steps are values: they are hashable, and equal ones are the same step.
"""

from dataclasses import dataclass
from typing import Any, TypeGuard


@dataclass(frozen=True)
class Attention:
    """Attention of a block alone, with its norms: it adds its output to the stream that enters it.

    In a model of sequential blocks, `Attention(3)` and then `Mlp(3)` are block 3. In a model of
    parallel blocks they are not: the MLP of block 3 reads the stream that enters the attention, and
    `Mlp(3)` the stream that leaves it.
    """

    block: int

    def __str__(self) -> str:
        return f"a{self.block}"


@dataclass(frozen=True)
class Mlp:
    """MLP of a block alone, with its norms; see `Attention`."""

    block: int

    def __str__(self) -> str:
        return f"m{self.block}"


@dataclass(frozen=True)
class Parallel:
    """Several steps on one residual stream, whose outputs are averaged."""

    steps: "tuple[Step, ...]"


Leaf = int | Attention | Mlp
"""A block, by its index, or one sublayer of a block."""


@dataclass(frozen=True)
class Scaled:
    """A block or a sublayer of which what it adds to the stream is multiplied by a factor.

    A stream h becomes h + factor · (step(h) − h). With 1 it is the step itself, with 0 it is left
    out.
    """

    step: Leaf
    factor: float

    def __str__(self) -> str:
        return f"{self.step}*{number_text(self.factor)}"


@dataclass(frozen=True)
class StreamScale:
    """Multiplication of the residual stream by a factor, which is not 0."""

    factor: float

    def __str__(self) -> str:
        return f"*{number_text(self.factor)}"


@dataclass(frozen=True)
class StreamMap:
    """Fitted map of the residual stream, in the place of the blocks from `first` to `last`.

    A stream h becomes h A + b, where the matrix A (width, width) and the offset b (width,) belong
    to the model; see `robustness.models.maps`.
    """

    first: int
    last: int

    def __str__(self) -> str:
        return f"~{span_text(self.first, self.last)}"


@dataclass(frozen=True)
class Mapped:
    """A block or a sublayer of which what it adds goes through a fitted matrix.

    A stream h becomes h + (step(h) − h) T, with a matrix T (width, width) that makes the stream
    resemble that behind the blocks from `first` to `last`, which are left out.
    """

    step: Leaf
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.step}~{span_text(self.first, self.last)}"


Step = int | Attention | Mlp | Parallel | Scaled | StreamScale | StreamMap | Mapped
"""Step of a schedule: mostly the index of a block in the model."""

RECORDS = (Attention, Mlp, Parallel, Scaled, StreamScale, StreamMap, Mapped)
"""Classes of the steps that are no whole blocks."""


def number_text(number: float) -> str:
    """Return the shortest text of a number from which the same number is read.

    >>> number_text(2.0), number_text(0.05), number_text(1e20)
    ('2', '0.05', '1e20')
    """
    return repr(float(number)).removesuffix(".0").replace("+", "")


def span_text(first: int, last: int) -> str:
    """Return the text of the blocks that a map stands for.

    >>> span_text(4, 7), span_text(4, 4)
    ('4..7', '4')
    """
    return str(first) if first == last else f"{first}..{last}"


def is_block(step: Step) -> TypeGuard[int]:
    """Whether a step is a whole block."""
    # Not `isinstance(step, int)`: other integers, such as NumPy's, are blocks too.
    return not isinstance(step, RECORDS)


def leaves(step: Step) -> tuple[Leaf, ...]:
    """Return the blocks and sublayers that a step calls.

    >>> leaves(Parallel((3, Attention(4), StreamScale(2.0))))
    (3, Attention(block=4))
    >>> leaves(Mapped(Mlp(3), 4, 7))
    (Mlp(block=3),)
    """
    if isinstance(step, Parallel):
        called: list[Leaf] = []
        for member in step.steps:
            called += leaves(member)
        return tuple(called)
    if isinstance(step, (StreamScale, StreamMap)):
        return ()
    return (step.step,) if isinstance(step, (Scaled, Mapped)) else (step,)


def maps(step: Step) -> tuple[StreamMap | Mapped, ...]:
    """Return the fitted maps that a step takes.

    >>> maps(Parallel((3, StreamMap(4, 7))))
    (StreamMap(first=4, last=7),)
    """
    if isinstance(step, Parallel):
        taken: list[StreamMap | Mapped] = []
        for member in step.steps:
            taken += maps(member)
        return tuple(taken)
    return (step,) if isinstance(step, (StreamMap, Mapped)) else ()


def lowest_block(step: Step) -> int:
    """Return the lowest index of the blocks that a step calls, or whose sublayers it calls.

    Of a fitted map that calls none, it is the first of the blocks that the map stands for, and of
    a scale of the stream -1.

    >>> lowest_block(Parallel((3, Attention(2))))
    2
    """
    if isinstance(step, Parallel):
        return min(map(lowest_block, step.steps))
    if isinstance(step, StreamScale):
        return -1
    if isinstance(step, StreamMap):
        return step.first
    leaf = step.step if isinstance(step, (Scaled, Mapped)) else step
    return leaf.block if isinstance(leaf, (Attention, Mlp)) else leaf


def plain(step: Step) -> Any:
    """Return a step as it travels: an index, or a tuple that begins with its kind.

    >>> plain(Parallel((3, Attention(4))))
    ('parallel', (3, ('attention', 4)))
    >>> plain(Scaled(Mlp(5), 0.5)), plain(StreamScale(1.05))
    (('scaled', (('mlp', 5), 0.5)), ('scale', 1.05))
    >>> plain(StreamMap(4, 7)), plain(Mapped(3, 4, 7))
    (('map', (4, 7)), ('mapped', (3, (4, 7))))
    """
    if isinstance(step, Parallel):
        return ("parallel", tuple(plain(member) for member in step.steps))
    if isinstance(step, Scaled):
        return ("scaled", (plain(step.step), step.factor))
    if isinstance(step, StreamScale):
        return ("scale", step.factor)
    if isinstance(step, StreamMap):
        return ("map", (step.first, step.last))
    if isinstance(step, Mapped):
        return ("mapped", (plain(step.step), (step.first, step.last)))
    if isinstance(step, (Attention, Mlp)):
        return (type(step).__name__.lower(), step.block)
    return step
