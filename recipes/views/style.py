"""Style of figures: colours, lines with bands, points with bars, heat maps, and their texts.

matplotlib is imported when the first figure is made, so that tables are shown without it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from recipes.terminal import printable
from robustness.statistics.uncertainty import band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of Okabe and Ito, which people with any colour vision can tell apart."""

LIGHT_ON_DARK = ("#5AB4E5", "#FF8A4C", "#3FCFA5", "#E5A3C6", "#F5BC45", "#8FD0F5")
"""Lighter variants of `COLOURS` for a dark page, without black."""

MARKERS = "osD^vPX"
"""Markers of lines, in the order of `COLOURS`."""

MOST_TICKS = 16
"""Maximum number of layers that have a tick each."""

LONGEST_TEXT = 200
"""Maximum number of letters of a text in a figure; longer ones take minutes to be laid out."""

LONGEST_NAME = 60
"""Maximum number of letters of a line's name in a legend, which takes room from the figure."""

MOST_LINES_INSIDE = 4
"""Maximum number of lines whose legend is placed inside a panel."""

Ends = Callable[[xr.DataArray], xr.DataArray]
"""Function from values (…, sequence) to the ends (…, end) of the band around their mean."""

# A context variable, so that two threads can draw different bands at once.
_ENDS: ContextVar[Ends] = ContextVar("ends", default=band)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    # Not by pyplot, which would keep every figure open and choose a window system.
    return Figure(figsize=(width, height), layout="constrained")


def panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    """Return a figure and its panels (row, column), with the size of one panel in inches."""
    figure = new_figure(size[0] * columns, size[1] * rows)
    return figure, figure.subplots(rows, columns, squeeze=False)


def ends(values: xr.DataArray) -> xr.DataArray:
    """Return the ends (…, end) of the band around a mean over sequences; see `bands`."""
    return _ENDS.get()(values)


@contextmanager
def bands(of: Ends) -> Iterator[None]:
    """Replace the bands around means within the context, as by bootstrap intervals."""
    before = _ENDS.set(of)
    try:
        yield
    finally:
        _ENDS.reset(before)


def line_style(index: int) -> dict[str, Any]:
    """Return the colour and marker of the line with an index."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def curve(
    axis: Axes, x: ArrayLike, values: xr.DataArray, index: int, label: str, **style: Any
) -> None:
    """Draw a curve, with its 95 % band if it is a mean over sequences.

    All figures draw their curves here, so a curve has the same band in all of them.

    Parameters
    ----------
    axis : Axes
        Axes to draw on.
    x : array of shape (point,)
        Horizontal positions of the points.
    values : DataArray
        Values by point, or by point and `sequence`.
    index : int
        Index of the colour and marker.
    label : str
        Name in the legend.
    **style
        Keywords of `band_line`.
    """
    line, around = values, None
    if "sequence" in values.dims:
        line, around = values.mean("sequence", skipna=False), ends(values)
    band_line(axis, x, line, around, index, label=label, **style)


def band_line(
    axis: Axes,
    x: ArrayLike,
    line: xr.DataArray,
    around: xr.DataArray | None,
    index: int,
    *,
    log: bool = False,
    **style: Any,
) -> None:
    """Draw a line, with a band between the ends `around` (point, end) if there are any."""
    look = line_style(index)
    axis.plot(x, line, **{"markersize": 4, **look, **style})
    if around is not None:
        # Without an interval, as with a single document, the band has no width.
        around = around.fillna(line)
        lower, upper = around.sel(end="low"), around.sel(end="high")
        if log:
            # On a logarithmic axis, a band down to zero would fill the panel.
            lower = lower.clip(min=line / 10)
        axis.fill_between(x, lower, upper, color=look["color"], alpha=0.2, linewidth=0)
    axis.grid(alpha=0.3)


def lines(axis: Axes, values: xr.DataArray, names: str, label: str, *, log: bool = False) -> None:
    """Draw means over sequences against layer or depth, with bands, one line for each name."""
    along = "depth" if "depth" in values.dims else "layer"
    # A logarithmic axis without a positive value cannot be drawn.
    log = log and bool((values.mean("sequence", skipna=False) > 0).any())
    for index, name in enumerate(values[names].values):
        curve(axis, values[along], values.sel({names: name}), index, str(name), log=log)
    if log:
        axis.set_yscale("log")
    whole_numbers(axis, label)
    if values.sizes[along] <= MOST_TICKS:
        axis.set_xticks(values[along].values)


def bounded_line(
    axis: Axes, x: ArrayLike, dataset: xr.Dataset, name: str, index: int, label: str
) -> None:
    """Draw a variable as a line, with a band from its `_low` to its `_high`."""
    around = xr.concat(
        [dataset[f"{name}_low"], dataset[f"{name}_high"]], xr.Variable("end", ["low", "high"])
    )
    band_line(axis, x, dataset[name], around, index, label=label)


def bounded_points(
    axis: Axes, x: ArrayLike, dataset: xr.Dataset, name: str, index: int, label: str
) -> None:
    """Draw a variable as points, with bars from its `_low` to its `_high`."""
    middle, low, high = dataset[name], dataset[f"{name}_low"], dataset[f"{name}_high"]
    bars = np.stack([middle - low, high - middle]).clip(min=0)
    look = line_style(index)
    axis.errorbar(x, middle, bars, linestyle="", markersize=4, label=label, **look)


def heat_map(
    axis: Axes,
    values: xr.DataArray,
    rows: str,
    columns: str,
    limits: tuple[float | None, float | None] = (None, None),
) -> AxesImage:
    """Draw values over two dimensions as a heat map between limits, and return its image."""
    from matplotlib.ticker import MaxNLocator

    image = axis.imshow(
        values.transpose(rows, columns),
        origin="lower",
        aspect="auto",
        cmap="viridis",
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
    )
    axis.set_ylabel(rows)
    whole_numbers(axis, columns)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(False)
    return image


def diverging_colours(image: AxesImage, reach: float) -> None:
    """Give an image a colour scale with white at zero, up to a distance either side."""
    from matplotlib.colors import CenteredNorm

    image.set_cmap("RdBu_r")
    # Of zeros alone the scale would have no width: None lets matplotlib choose one.
    image.set_norm(CenteredNorm(halfrange=reach or None))


def logarithmic_colours(image: AxesImage, low: float, high: float) -> None:
    """Give an image a logarithmic colour scale."""
    from matplotlib.colors import LogNorm

    image.set_norm(LogNorm(low, high))


def whole_numbers(axis: Axes, label: str) -> None:
    """Label a horizontal axis of whole numbers, and put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)


def zero_line(axis: Axes, height: float = 0.0) -> None:
    """Draw a thin horizontal line for comparison, such as no change or chance."""
    axis.axhline(height, color="grey", linewidth=0.8)


def legend_of_first(figure: Figure) -> None:
    """Put the legend into the first panel, or beside the panels if it has many lines."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) > MOST_LINES_INSIDE:
        figure.legend(handles, labels, loc="outside right center", frameon=False)
    else:
        figure.axes[0].legend(frameon=False)


def plain(text: str, longest: int = LONGEST_TEXT) -> str:
    """Return a text that figures show literally: one line, no formula, nothing invisible."""
    # Cut first, since a text from a file may be megabytes long.
    text = printable(" ".join(text[: longest + 1].split("\n")).replace("\t", " "))
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    # matplotlib would read the text between two dollar signs as a formula.
    return re.sub(r"(?<!\\)\$", r"\$", text)


def with_plain_texts(figure: Figure) -> Figure:
    """Return a figure with all of its texts made plain; they may be names from untrusted files."""
    from matplotlib.legend import Legend
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter

    for text in figure.findobj(Text):
        text.set_text(plain(text.get_text()))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            # Labels of ticks are made anew at every drawing, from these formatters.
            for formatter in (axis.get_major_formatter(), axis.get_minor_formatter()):
                if isinstance(formatter, FixedFormatter):
                    formatter.seq = [plain(str(label)) for label in formatter.seq]
    for legend in figure.findobj(Legend):
        for text in legend.get_texts():
            text.set_text(plain(text.get_text(), LONGEST_NAME))
    # A letter that the font lacks is drawn as a box.
    warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
    warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
    return figure


def svg_style() -> AbstractContextManager[None]:
    """Return a context in which SVG files keep text as text, and are the same at every run."""
    import matplotlib

    # Without a salt, the ids in a file are random.
    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stages"})
