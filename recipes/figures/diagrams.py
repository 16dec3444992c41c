"""Diagrams of the paper, drawn from schedules alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.views import style
from recipes.views.style import COLOURS
from robustness.schedules import Schedule, clean, drop, lowest_block, swap, to_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLOCKS = 6
"""Number of blocks of the model that is drawn."""

CHANGED = 2
"""Index of the block that is dropped, or swapped with the next."""

WIDTH, HEIGHT = 1.5, 0.62
"""Size of a block; steps are 1 apart."""


def schedules() -> Figure:
    """Draw the order of blocks in the clean run, with one dropped, and with two swapped."""
    whole = clean(BLOCKS)
    figure = style.new_figure(7, 4.6)
    shown = {"clean": whole, "drop": drop(whole, CHANGED), "swap": swap(whole, CHANGED)}
    for axis, (name, schedule) in zip(figure.subplots(1, 3), shown.items(), strict=True):
        _column(axis, 0, schedule)
        axis.set_title(f"{name}\n{to_text(schedule)}", fontsize="medium")
        axis.set_xlim(-1.2, 1.2)
    return figure


def comparisons() -> Figure:
    """Draw two blocks in the clean run and swapped, and the pairs of outputs to compare."""
    from matplotlib.lines import Line2D

    figure = style.new_figure(8, 4.8)
    axis = figure.subplots()
    left, right, edge = 0.0, 5.0, WIDTH / 2
    low, high = CHANGED, CHANGED + 1
    _column(axis, left, clean(BLOCKS))
    _column(axis, right, swap(clean(BLOCKS), CHANGED))
    axis.text(left, -1.25, "clean", ha="center")
    axis.text(right, -1.25, "swapped", ha="center")
    axis.set_xlim(-2, 6.2)
    for colour, ours, theirs in (
        (0, high, low), (0, low, high), (2, low, low), (1, high, high),
    ):  # fmt: skip
        _arrow(axis, (right - edge, ours), (left + edge, theirs), colour)
    _arrow(axis, (left - edge, low), (left - edge, high), 3, "arc3,rad=-0.6")
    labels = {
        0: "self-similarity: a block with itself",
        2: "index similarity, early: the block moved earlier with the one it replaces",
        1: "index similarity, late: the block moved later with the one it replaces",
        3: "adjacent similarity: the two blocks of the clean run",
    }
    handles = [Line2D([], [], color=COLOURS[at], label=label) for at, label in labels.items()]
    figure.legend(handles=handles, loc="outside lower center", frameon=False)
    return figure


def _arrow(
    axis: Axes,
    begin: tuple[float, float],
    end: tuple[float, float],
    colour: int,
    bend: str = "arc3",
) -> None:
    from matplotlib.patches import FancyArrowPatch

    axis.add_patch(
        FancyArrowPatch(
            begin,
            end,
            arrowstyle="<|-|>",
            mutation_scale=12,
            connectionstyle=bend,
            color=COLOURS[colour],
            linewidth=1.8,
        )
    )


def _column(axis: Axes, x: float, schedule: Schedule) -> None:
    """Draw the residual stream upwards, with a block at every step of a schedule.

    A dropped block leaves a gap, so that the others keep the height that they have in the clean
    run.
    """
    from matplotlib.patches import FancyBboxPatch

    axis.plot([x, x], [-0.9, BLOCKS - 0.3], color="grey", linewidth=1.2, zorder=0)
    axis.plot([x], [BLOCKS - 0.3], color="grey", marker="^", zorder=0)
    shift = 0
    for place, step in enumerate(map(lowest_block, schedule)):
        if len(schedule) < BLOCKS and step > place:
            shift = 1
        height = place + shift
        box = FancyBboxPatch(
            (x - WIDTH / 2, height - HEIGHT / 2),
            WIDTH,
            HEIGHT,
            boxstyle="round,pad=0.02",
            facecolor="#dddddd" if step == height else COLOURS[4],
            edgecolor="grey",
        )
        axis.add_patch(box)
        axis.text(x, height, f"block {step}", ha="center", va="center", color="#111111")
    axis.set_ylim(-1.5, BLOCKS)
    axis.set_axis_off()
