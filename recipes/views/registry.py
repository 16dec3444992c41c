"""Registry of the kinds of files: how each is recognised, its tables, and its figure.

A new kind needs a module such as `recipes.views.lens`, and a row in `VIEWS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xarray as xr

from recipes.views import (
    attention,
    cka,
    claims,
    comparison,
    layered,
    lens,
    neurons,
    norms,
    pairs,
    schedules,
    search,
    similarity,
    stages,
    style,
    subjoiner,
    suffix,
    sweep,
    task_schedules,
    tasks,
    tokens,
    wic,
)
from recipes.views.heading import figure_title, notes
from recipes.views.readouts import is_difference
from recipes.views.sections import Section
from recipes.views.tabular import Tables
from robustness.errors import Refusal
from robustness.files.sequences import measured_sequences
from robustness.statistics.bootstrap_intervals import bootstrap
from robustness.statistics.uncertainty import band

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DrawFigure = Callable[[xr.Dataset], "Figure"]


@dataclass(frozen=True)
class View:
    """How the files of one kind are recognised, tabulated and drawn."""

    kind: str
    """Value of the files' attribute `measurement`."""
    sections: Callable[[xr.Dataset], Iterator[Section]]
    """Function that yields the sections of the table; none if nothing is measured yet."""
    figure: DrawFigure = layered.figure
    """Function that draws the figure of a dataset."""
    token_figure: DrawFigure | None = None
    """Function that draws a file with values of single tokens, if that figure is another."""
    draws_differences: bool = False
    """Whether `figure` can draw the difference of two files too."""


VIEWS = (
    View("sweep", sweep.sections, sweep.figure, tokens.figure, draws_differences=True),
    View("schedules", schedules.sections, schedules.figure, draws_differences=True),
    View("pairs", pairs.sections, pairs.figure, draws_differences=True),
    View("lens", lens.sections, lens.figure),
    View("cka", cka.sections, cka.figure),
    View("attention", attention.sections, attention.figure),
    View("norms", norms.sections, norms.figure),
    View("similarity", similarity.sections, similarity.figure),
    View("neurons", neurons.sections, neurons.figure),
    View("wic", wic.sections, wic.figure),
    View("suffix", suffix.sections, suffix.figure),
    View("subjoiner", subjoiner.sections, subjoiner.figure),
    View("tasks", tasks.sections, tasks.figure),
    View("tasks-schedules", task_schedules.sections, task_schedules.figure),
    View("tasks-clean", task_schedules.sections, task_schedules.figure),
    View("search", search.sections, search.figure),
    View("stages", stages.sections, stages.figure),
    View("claims", claims.sections),
    View("compare", comparison.sections),
)
"""Views of all kinds of files that have their own, a row each."""

ANY_OTHER = View("", layered.sections, layered.figure, draws_differences=True)
"""View of a file of any other kind, such as a user's own measurement."""


def view_of(dataset: xr.Dataset) -> View:
    """Return the view of a file, chosen by its attribute `measurement`."""
    kind = dataset.attrs.get("measurement")
    return next((view for view in VIEWS if view.kind == kind), ANY_OTHER)


def table(dataset: xr.Dataset, *, by_bootstrap: bool = False) -> Tables:
    """Return the tables of a file: means over sequences with standard errors.

    `recipes.views.layout` writes tables as text, as JSON or as CSV.

    Parameters
    ----------
    dataset : Dataset
        Dataset of a file.
    by_bootstrap : bool
        Whether means have 95 % bootstrap intervals instead of standard errors.

    Raises
    ------
    Refusal
        If the file holds nothing that can be tabulated.
    """
    # The planned number has to be read before sequences without values are left out.
    planned = dataset.sizes.get("sequence", 0)
    dataset = measured_sequences(dataset)
    sections = list(view_of(dataset).sections(dataset))
    if not sections:
        raise Refusal(layered.unfit("tabulated", dataset))
    shown = [section.table(by_bootstrap=by_bootstrap) for section in sections]
    return Tables(shown, list(notes(dataset, planned, by_bootstrap=by_bootstrap)))


def draw(dataset: xr.Dataset, *, by_bootstrap: bool = False) -> Figure:
    """Draw the figure of a file, with 95 % bands by Student's t or by bootstrap.

    Parameters
    ----------
    dataset : Dataset
        Dataset of a file.
    by_bootstrap : bool
        Whether bands are bootstrap intervals, instead of intervals by Student's t.

    Raises
    ------
    Refusal
        If the file holds nothing that can be drawn, or the figure has no band for a bootstrap.
    """
    view = view_of(dataset)
    drawn_by_bootstrap: list[str] = []

    # A figure does not say beforehand whether it has bands: it is drawn, and the calls are counted.
    def bootstrap_ends(values: xr.DataArray) -> xr.DataArray:
        drawn_by_bootstrap.append(str(values.name))
        return bootstrap(values)

    with style.bands(bootstrap_ends if by_bootstrap else band):
        if "token" in dataset.dims and view.token_figure is not None:
            figure = view.token_figure(dataset)
        elif is_difference(dataset) and not view.draws_differences:
            figure = layered.figure(measured_sequences(dataset))
        else:
            figure = view.figure(measured_sequences(dataset))
    if by_bootstrap and not drawn_by_bootstrap:
        raise Refusal(
            "this figure has no bands that a bootstrap could give: leave out `by_bootstrap`"
        )
    figure.suptitle(style.plain(figure_title(dataset)), wrap=True)
    return style.with_plain_texts(figure)
