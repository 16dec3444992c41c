"""Registry of the paper's figures: functions by the names in recipes, drawn from files alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from recipes.evidence.files import Absent
from recipes.figures import (
    attention,
    diagrams,
    probes,
    residual_stream,
    signatures,
    sweeps,
    tasks,
)
from recipes.figures.panels import Models, name_of
from recipes.recipe import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: Mapping[str, Callable[..., Figure]] = {
    function.__name__: function
    for function in (
        sweeps.interventions,
        sweeps.agreement_by_layers,
        sweeps.changes,
        sweeps.repetition,
        signatures.signatures,
        residual_stream.alignment,
        residual_stream.norm_ratio,
        residual_stream.mlp_norm,
        residual_stream.similarity,
        residual_stream.lens_entropy,
        residual_stream.lens_and_neurons,
        attention.windows,
        attention.local_attention,
        attention.subjoiner,
        probes.word_in_context,
        probes.suffix_probes,
        probes.effects,
        tasks.tasks,
        tasks.repeated_tasks,
    )
}
"""Functions that draw a figure from the files of one or more models, by their names."""

DIAGRAMS: Mapping[str, Callable[[], Figure]] = {
    "schedules": diagrams.schedules,
    "comparisons": diagrams.comparisons,
}
"""Functions that draw a diagram from schedules, by their names."""


def draw(picture: Picture, models: Models) -> Figure:
    """Draw a figure from the models that have all of its files.

    Raises
    ------
    Absent
        If no model has, with the first model's reason; or if too few or too many have.
    """
    options = dict(picture.options)
    if not picture.sources:
        return DIAGRAMS[picture.draw](**options)
    complete = [files for files in models if files.has(*picture.sources)]
    if not complete:
        reasons = filter(None, map(models[0].missing, picture.sources))
        raise Absent(next(reasons))
    if not picture.fewest <= len(complete) <= picture.most:
        raise Absent(f"it is drawn of {picture.fewest} to {picture.most} models")
    try:
        figure = FIGURES[picture.draw](complete, **options)
    except KeyError as error:  # a sweep without some readout
        reason = str(error.args[0]).partition(". ")[0]
        raise Absent(f"a file it needs is incomplete: {reason}") from error
    if len(complete) == 1:
        _name_model(figure, name_of(complete[0]))
    return figure


def _name_model(figure: Figure, name: str) -> None:
    """Put a model's name above its figure, unless a panel's title begins with it."""
    titles = [axis.get_title() for axis in figure.axes]
    if not any(title.startswith(name) for title in titles):
        figure.suptitle(name, fontsize="medium")
