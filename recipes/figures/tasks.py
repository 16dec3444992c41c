"""Figures of benchmark tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from recipes.evidence.curves import position
from recipes.evidence.files import task_metric
from recipes.figures.panels import PANEL, Models, name_of, with_layers, with_legend
from recipes.recipe import TASKS, TASKS_REPEAT
from recipes.views import style
from recipes.views.tasks import accuracy_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def tasks(models: Models, intervention: str) -> Figure:
    """Draw accuracy on tasks under an intervention, one panel for each task."""
    names: dict[str, None] = {}
    for files in models:
        names |= dict.fromkeys(map(str, files[TASKS]["task"].values))
    figure, axes = style.panels(1, len(names), PANEL)
    for axis, name in zip(axes[0], names, strict=True):
        for index, files in enumerate(models):
            if name in files[TASKS]["task"]:
                _draw_task(axis, files[TASKS], name, intervention, index, name_of(files))
    return with_legend(figure, models)


def repeated_tasks(models: Models) -> Figure:
    """Draw accuracy on HellaSwag when each of five blocks is executed twice."""
    figure, axes = style.panels(1, 1, PANEL)
    axis = axes[0, 0]
    for index, files in enumerate(with_layers(models, 5)):
        data = files[TASKS_REPEAT]
        if "hellaswag" in data["task"]:
            _draw_task(axis, data, "hellaswag", "repeat-5", index, name_of(files))
    axis.set_xlabel("relative depth where the span starts")
    return with_legend(figure, models)


def _draw_task(
    axis: Axes, dataset: xr.Dataset, task: str, intervention: str, index: int, label: str
) -> None:
    """Draw a task's accuracy under an intervention, with the clean model's as a dotted line."""
    line, around = accuracy_curve(dataset, task, intervention)
    style.band_line(axis, position(line), line, around, index, label=label, markersize=3)
    metric = task_metric(dataset, task)
    clean = float(dataset["clean_value"].sel(task=task, metric=metric))
    colour = style.line_style(index)["color"]
    axis.axhline(clean, color=colour, linestyle=":", linewidth=1.2)
    axis.set_title(f"{task} [{metric}]", fontsize="medium")
    axis.set_xlabel("relative depth")
    axis.set_ylabel("share answered right")
