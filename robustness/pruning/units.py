"""Units: blocks, attentions and MLPs that a search may remove, and schedules without them."""

from collections.abc import Collection, Sequence

from robustness.errors import Refusal
from robustness.schedules import Attention, Mlp, Schedule, Step

Unit = int | Attention | Mlp
"""A block, by its index, or one sublayer of a block."""

UNITS = ("block", "attention", "mlp", "sublayer")
"""Kinds of units; `sublayer` is attentions and MLPs mixed."""


def units_of(kind: str, layers: Sequence[int]) -> tuple[Unit, ...]:
    """Return the units of a kind in some layers, in the order of execution.

    >>> units_of("sublayer", [2, 3])
    (Attention(block=2), Mlp(block=2), Attention(block=3), Mlp(block=3))
    """
    if kind not in UNITS:
        raise Refusal(f"there are no units {kind!r}: {', '.join(UNITS)}")
    found: list[Unit] = []
    for layer in layers:
        if kind == "block":
            found.append(layer)
        if kind in ("attention", "sublayer"):
            found.append(Attention(layer))
        if kind in ("mlp", "sublayer"):
            found.append(Mlp(layer))
    return tuple(found)


def without(layers: int, removed: Collection[Unit]) -> Schedule:
    """Return the schedule of a model of `layers` blocks that lacks some units.

    >>> without(4, {1, Mlp(2)})
    (0, Attention(block=2), 3)
    >>> without(3, {Attention(1), Mlp(1)})
    (0, 2)
    """
    steps: list[Step] = []
    for layer in range(layers):
        attention, mlp = Attention(layer) in removed, Mlp(layer) in removed
        if layer in removed or (attention and mlp):
            continue
        if attention or mlp:
            steps.append(Mlp(layer) if attention else Attention(layer))
        else:
            steps.append(layer)
    return tuple(steps)


def lacking(schedule: Schedule, units: Sequence[Unit], layers: int) -> frozenset[Unit]:
    """Return the units that a schedule lacks, or none if it is more than a model without them.

    >>> sorted(lacking((0, 3), range(4), 4)), lacking((0, 3, 2), range(4), 4)
    ([1, 2], frozenset())
    """
    executed = set[Step](schedule)
    for block in range(layers):
        if block in executed:
            executed |= {Attention(block), Mlp(block)}
    removed = frozenset(unit for unit in units if unit not in executed)
    return removed if without(layers, removed) == schedule else frozenset()


def names(removed: Collection[Unit]) -> str:
    """Return the names of units in the order of execution, separated by spaces.

    >>> names({7, Mlp(3), Attention(10)})
    'm3 7 a10'
    """
    return " ".join(str(unit) for unit in sorted(removed, key=_place))


def _place(unit: Unit) -> tuple[int, str]:
    """Return the sort key of a unit: its block, and the attention before the MLP."""
    return (unit, "") if isinstance(unit, int) else (unit.block, str(unit))
