"""How lines with bands, points with bars and heat maps are drawn, the same in every figure."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, MaxNLocator

from recipes.terminal import printable
from robustness.statistics.uncertainty import band

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people with any colour vision tell apart."""

LIGHT_ON_DARK = ("#5AB4E5", "#FF8A4C", "#3FCFA5", "#E5A3C6", "#F5BC45", "#8FD0F5")
"""The same, but for black, on a dark page."""

MARKERS = "osD^vPX"


BAND = 1.96
"""Standard errors either side of a mean: 95 % where it is normal."""

TICKS = 16
"""The most layers of which each has a tick."""


_BANDS: ContextVar[Callable[[xr.DataArray], xr.DataArray]] = ContextVar("bands", default=band)

LETTERS = 200
"""The most letters of a name in a figure, which cannot be laid out in reasonable time else."""


LINE = 60
"""The most letters of a line's name in a legend, which takes its room from the figure."""


def plain(text: str, most: int = LETTERS) -> str:
    """Return a text that figures show as it is: one line, no formula, nothing invisible."""
    text = printable(" ".join(text[: most + 1].split("\n")).replace("\t", " "))
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    # An even number of dollar signs would be read as a formula.
    return re.sub(r"(?<!\\)\$", r"\$", text)


def with_plain_texts(figure: Figure) -> Figure:
    """Return a figure whose texts, which may be names from files of others, are all plain."""
    for text in figure.findobj(Text):
        text.set_text(plain(text.get_text()))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for formatter in (axis.get_major_formatter(), axis.get_minor_formatter()):
                if isinstance(formatter, FixedFormatter):
                    formatter.seq = [plain(str(label)) for label in formatter.seq]
    for legend in figure.findobj(Legend):
        for text in legend.get_texts():
            text.set_text(plain(text.get_text(), LINE))
    # Where a font has no sign for a letter, a box stands for it.
    warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
    warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
    return figure


def ends(values: xr.DataArray) -> xr.DataArray:
    """Return the ends of the band around a mean over sequences, (…, end), of the kind asked for."""
    return _BANDS.get()(values)


@contextmanager
def bands(of: Callable[[xr.DataArray], xr.DataArray]) -> Iterator[None]:
    """Draw bands around means of another kind, such as `uncertainty.bootstrap`."""
    before = _BANDS.set(of)
    try:
        yield
    finally:
        _BANDS.reset(before)


def svg_style() -> AbstractContextManager[None]:
    """Have SVG written with text as text, and the same at every run."""
    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stages"})


def lines(axis: Axes, values: xr.DataArray, names: str, label: str, *, log: bool = False) -> None:
    """Draw means over sequences against layer or depth, with a band, a line for each name."""
    along = "depth" if "depth" in values.dims else "layer"
    mean, around = values.mean("sequence", skipna=False), ends(values)
    log = log and bool((mean > 0).any())
    for index, name in enumerate(values[names].values):
        line, band = mean.sel({names: name}), around.sel({names: name})
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axis.plot(line[along], line, color=colour, marker=marker, markersize=4, label=str(name))
        lower, upper = (band.sel(end=end).fillna(line) for end in ("low", "high"))
        if log:  # where a band may not reach zero
            lower = lower.clip(min=line / 10)
        axis.fill_between(line[along], lower, upper, color=colour, alpha=0.25, linewidth=0)
    if log:
        axis.set_yscale("log")
    whole_numbers(axis, label)
    if values.sizes[along] <= TICKS:
        axis.set_xticks(values[along].values)


def bounded(
    axis: Axes,
    x: Any,
    dataset: xr.Dataset,
    name: str,
    index: int,
    label: str,
    *,
    line: bool = True,
) -> None:
    """Draw a variable with its `_low` and `_high`, as a line with a band or points with bars."""
    middle, low, high = (dataset[f"{name}{end}"] for end in ("", "_low", "_high"))
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    if line:
        axis.plot(x, middle, color=colour, marker=marker, markersize=4, label=label)
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    else:
        bars = np.stack([middle - low, high - middle]).clip(min=0)
        axis.errorbar(
            x, middle, bars, color=colour, marker=marker, linestyle="", markersize=4, label=label
        )


def heat_map(
    axis: Axes,
    values: xr.DataArray,
    rows: str,
    columns: str,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """Draw values (rows, columns) as a heat map, and return its image."""
    image = axis.imshow(
        values.transpose(rows, columns),
        origin="lower",
        aspect="auto",
        cmap="viridis",
        vmin=low,
        vmax=high,
        interpolation="nearest",
    )
    axis.set_ylabel(rows)
    whole_numbers(axis, columns)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(False)
    return image


def whole_numbers(axis: Axes, label: str) -> None:
    """Name an axis of whole numbers."""
    axis.set_xlabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
